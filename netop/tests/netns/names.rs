//! A pod's way to DNS: a node, a pod of it, and name servers that answer one and not the other.

use std::{
    io::Write,
    net::{IpAddr, Ipv4Addr, UdpSocket},
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata},
};
use prometheus::Registry;
use slice_crds::conditions::{Verdict, reason};
use slice_netop::{
    metrics::Metrics,
    names::{Local, Pace, Pod, View, task},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::support::{Background, Space};

/// Local in every namespace, and nobody's elsewhere.
const CLUSTER_DNS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 96, 0, 10));
const SLICE_DNS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 96, 7, 7));
const PACE: Pace = Pace {
    every: Duration::from_millis(50),
    jitter: Duration::from_millis(10),
    patience: Duration::from_millis(200),
    doubt: Duration::from_millis(100),
    first_doubt: Duration::from_millis(100),
};

/// What the servers of a namespace answer: cluster DNS for its own names, for the zone, and slice DNS for the zone. `None` is silence.
#[derive(Clone, Copy)]
struct How {
    api: Option<ResponseCode>,
    zone: Option<ResponseCode>,
    slice_dns: Option<ResponseCode>,
}

const OK: Option<ResponseCode> = Some(ResponseCode::NoError);
const WELL: How = How {
    api: OK,
    zone: OK,
    slice_dns: OK,
};

/// Both servers, in one namespace.
struct Servers {
    how: Arc<Mutex<How>>,
    _answering: [Background<()>; 2],
}

impl Servers {
    fn start(space: &Space) -> Self {
        let how = Arc::new(Mutex::new(WELL));
        let answering = [CLUSTER_DNS, SLICE_DNS].map(|address| {
            let socket = space.run(|| UdpSocket::bind((address, 53)));
            socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            let how = Arc::clone(&how);
            Background::start(move |stop| {
                let mut buffer = [0; 512];
                while !stop.load(Ordering::Relaxed) {
                    let Ok((length, from)) = socket.recv_from(&mut buffer) else {
                        continue;
                    };
                    let question = Message::from_vec(&buffer[..length]).unwrap();
                    if let Some(answer) = answer(*how.lock().unwrap(), address, &question) {
                        // Who asked may have gone.
                        let _ = socket.send_to(&answer, from);
                    }
                }
            })
        });
        Self {
            how,
            _answering: answering,
        }
    }

    fn set(&self, how: How) {
        *self.how.lock().unwrap() = how;
    }
}

fn answer(how: How, server: IpAddr, question: &Message) -> Option<Vec<u8>> {
    let query = question.queries.first().unwrap();
    let is_zone = query.query_type() == RecordType::SOA;
    assert_eq!(is_zone, query.name().to_string() == "slice.local.");
    let code = match (server == SLICE_DNS, is_zone) {
        (true, _) => how.slice_dns,
        (false, true) => how.zone,
        (false, false) => how.api,
    }?;
    let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
    answer.metadata.response_code = code;
    answer.add_query(query.clone());
    if code == ResponseCode::NoError {
        let name = || Name::from_ascii("ns.slice.local.").unwrap();
        let data = match is_zone {
            true => RData::SOA(rdata::SOA::new(name(), name(), 1, 1, 1, 1, 1)),
            false => RData::A(rdata::A::new(10, 96, 0, 1)),
        };
        answer.add_answer(Record::from_rdata(query.name().clone(), 1, data));
    }
    Some(answer.to_vec().unwrap())
}

/// A node whose agent asks.
struct Node {
    servers: Servers,
    view: watch::Receiver<View>,
    local: watch::Sender<Local>,
    stop: CancellationToken,
    agent: Option<std::thread::JoinHandle<()>>,
    _space: Space,
    _file: tempfile::NamedTempFile,
}

impl Node {
    fn start(pods: Vec<Pod>) -> Self {
        let space = Space::new("node");
        let servers = Servers::start(&space);
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(
            file,
            "search default.svc.cluster.local svc.cluster.local\nnameserver {CLUSTER_DNS}"
        )
        .unwrap();
        let (local, current) = watch::channel(Local {
            slice_dns: Some(SLICE_DNS),
            pods,
            before: None,
        });
        let (sender, view) = watch::channel(View::default());
        let stop = CancellationToken::new();
        let (path, inside, stopped) = (file.path().to_owned(), space.path(), stop.clone());
        // Its sockets are of the namespace that the runtime's thread is in.
        let agent = std::thread::spawn(move || {
            slice_netop::kernel::netns::within(&inside, || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()?;
                let metrics = Metrics::register(&Registry::new());
                runtime.block_on(task::run(path, PACE, metrics, current, sender, stopped));
                Ok(())
            })
            .unwrap();
        });
        Self {
            servers,
            view,
            local,
            stop,
            agent: Some(agent),
            _space: space,
            _file: file,
        }
    }

    async fn says(&self, reason: &str) -> Verdict {
        let mut view = self.view.clone();
        let said = view.wait_for(|view| view.as_ref().is_some_and(|said| said.reason == reason));
        match tokio::time::timeout(Duration::from_secs(20), said).await {
            Ok(said) => said.unwrap().clone().unwrap(),
            Err(_) => panic!("{reason}: {:?}", self.view.borrow()),
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(agent) = self.agent.take() {
            let _ = agent.join();
        }
    }
}

fn pod(space: &Space) -> Pod {
    Pod {
        namespace: "shop".into(),
        name: "web-0".into(),
        netns: space.path(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_part_of_the_way_that_fails_is_named_as_the_pod_sees_it() {
    let space = Space::new("pod");
    let pods = Servers::start(&space);
    let node = Node::start(vec![pod(&space)]);
    assert_eq!(node.says(reason::NAMES_RESOLVE).await.status, Some(true));
    let refused = Some(ResponseCode::NXDomain);
    let failed = Some(ResponseCode::ServFail);
    let silent = How {
        api: None,
        zone: None,
        slice_dns: None,
    };
    for (how, wanted, words) in [
        (
            How {
                zone: refused,
                ..WELL
            },
            reason::ZONE_UNKNOWN,
            "(NXDOMAIN)",
        ),
        (
            How {
                zone: failed,
                slice_dns: None,
                ..WELL
            },
            reason::SLICE_DNS_FAILS,
            "slice DNS, 127.96.7.7 UDP port 53, answers neither pod shop/web-0",
        ),
        (
            How { zone: failed, ..WELL },
            reason::FORWARDING_FAILS,
            "gets no answer from slice DNS, 127.96.7.7",
        ),
        (silent, reason::CLUSTER_DNS_FAILS, "(it does not answer)"),
    ] {
        pods.set(how);
        node.servers.set(how);
        let said = node.says(wanted).await;
        assert!(said.message.contains(words), "{}", said.message);
        assert!(said.message.contains("pod shop/web-0"), "{}", said.message);
    }
    pods.set(WELL);
    assert_eq!(node.says(reason::NAMES_RESOLVE).await.status, Some(true));

    // The node is answered, and its pod is not.
    node.servers.set(WELL);
    pods.set(silent);
    let said = node.says(reason::PODS_CUT_OFF).await;
    assert!(
        said.message
            .contains("`kubectl -n shop exec web-0 -- nslookup -type=soa slice.local. 127.96.0.10`"),
        "{}",
        said.message
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_asks_where_no_pod_can_and_nobody_where_nobody_wants_to_know() {
    let space = Space::new("pod");
    let mut gone = pod(&space);
    gone.netns = "/run/netns/weft-gone".into();
    let node = Node::start(vec![gone]);
    assert_eq!(node.says(reason::NAMES_RESOLVE).await.status, Some(true));
    let refused = Some(ResponseCode::Refused);
    node.servers.set(How {
        zone: refused,
        ..WELL
    });
    let said = node.says(reason::ZONE_UNKNOWN).await;
    assert!(
        said.message
            .contains("`dig @127.96.0.10 slice.local SOA` on the node"),
        "{}",
        said.message
    );

    node.local.send_modify(|local| local.slice_dns = None);
    let mut view = node.view.clone();
    let nothing = view.wait_for(Option::is_none);
    tokio::time::timeout(Duration::from_secs(20), nothing)
        .await
        .expect("it is forgotten")
        .unwrap();
}
