//! The edge between hickory's server and [`answer`](crate::answer).

use std::{sync::Arc, time::Instant};

use arc_swap::ArcSwap;
use hickory_proto::op::{Edns, Header, HeaderCounts, MessageType, Metadata, OpCode, ResponseCode};
use hickory_server::{
    net::runtime::Time,
    server::{Request, RequestHandler, ResponseHandler, ResponseInfo},
    zone_handler::MessageResponseBuilder,
};
use prometheus::{Histogram, HistogramOpts, IntCounterVec, IntGauge, Opts, Registry};

use crate::{
    answer::{self, Answer},
    zone::{Tables, ZoneTable},
};

/// Largest UDP answer that is sent to whoever accepts it: fits an unfragmented packet on the Internet (DNS flag day 2020).
const MAX_UDP: u16 = 1232;

/// What the servers count.
#[derive(Clone)]
pub struct Metrics {
    queries: IntCounterVec,
    latency: Histogram,
    pub names: IntGauge,
    pub views: IntGauge,
}

impl Metrics {
    /// # Panics
    /// Where `registry` has these metrics already.
    pub fn register(registry: &Registry) -> Self {
        let queries = IntCounterVec::new(
            Opts::new(
                "weft_dns_queries_total",
                "Questions answered, by where they came from and what was said",
            ),
            &["view", "code"],
        )
        .expect("a valid metric");
        let buckets = vec![1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 5e-3, 0.02, 0.1];
        let latency = Histogram::with_opts(
            HistogramOpts::new(
                "weft_dns_answer_seconds",
                "Time from a question read to its answer sent",
            )
            .buckets(buckets),
        )
        .expect("a valid metric");
        let names =
            IntGauge::new("weft_dns_names", "Names in the table of all slices").expect("a valid metric");
        let views = IntGauge::new(
            "weft_dns_slice_views",
            "Slices whose interface this process answers on",
        )
        .expect("a valid metric");
        registry
            .register(Box::new(queries.clone()))
            .expect("registered once");
        registry
            .register(Box::new(latency.clone()))
            .expect("registered once");
        registry
            .register(Box::new(names.clone()))
            .expect("registered once");
        registry
            .register(Box::new(views.clone()))
            .expect("registered once");
        Self {
            queries,
            latency,
            names,
            views,
        }
    }
}

/// Which table a server answers from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum View {
    All,
    Slice(String),
}

/// Answers for one view.
pub struct Handler {
    pub view: View,
    pub tables: Arc<ArcSwap<Tables>>,
    pub metrics: Metrics,
}

impl Handler {
    fn answer(&self, request: &Request) -> Answer {
        let only = |code| Answer {
            code,
            records: vec![],
            authority: None,
        };
        if request.metadata.message_type != MessageType::Query {
            return only(ResponseCode::FormErr);
        }
        if request.metadata.op_code != OpCode::Query {
            return only(ResponseCode::NotImp);
        }
        let Ok(info) = request.request_info() else {
            return only(ResponseCode::FormErr);
        };
        let tables = self.tables.load();
        let empty = ZoneTable::default();
        let table = match &self.view {
            View::All => &tables.all,
            View::Slice(slice) => tables.by_slice.get(slice).unwrap_or(&empty),
        };
        let turn = usize::from(request.metadata.id);
        answer::answer(table, info.query.name(), info.query.query_type(), turn)
    }
}

#[async_trait::async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut response_handle: R,
    ) -> ResponseInfo {
        let started = Instant::now();
        let answer = self.answer(request);
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.authoritative = answer.code != ResponseCode::Refused;
        metadata.response_code = answer.code;
        let mut builder = MessageResponseBuilder::from_message_request(request);
        let mut edns = Edns::new();
        if let Some(asked) = &request.edns {
            edns.set_max_payload(asked.max_payload().clamp(512, MAX_UDP))
                .set_version(0);
            builder.edns(&edns);
        }
        let response = builder.build(metadata, &answer.records, [], &answer.authority, []);
        let sent = response_handle.send_response(response).await;
        let view = match self.view {
            View::All => "all",
            View::Slice(_) => "slice",
        };
        self.metrics
            .queries
            .with_label_values(&[view, answer.code.to_str()])
            .inc();
        self.metrics.latency.observe(started.elapsed().as_secs_f64());
        sent.unwrap_or_else(|error| {
            tracing::debug!(error = error.to_string(), "answer not sent");
            metadata.response_code = ResponseCode::ServFail;
            Header {
                metadata,
                counts: HeaderCounts::default(),
            }
            .into()
        })
    }
}
