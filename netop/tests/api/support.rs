//! An API server that notes every request, and answers as it was told to.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{Method, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Take,
    /// Objects of a list.
    List(Vec<Value>),
    Refuse(u16),
    Never,
}

#[derive(Clone, Debug)]
pub struct Request {
    pub method: Method,
    /// With its query.
    pub path: String,
    pub body: Value,
}

#[derive(Clone, Default)]
pub struct Server(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    requests: Vec<Request>,
    /// By a part of the path; the last that fits counts.
    answers: Vec<(String, Answer)>,
}

impl Server {
    pub async fn start() -> (Self, Client) {
        slice_runtime::client::install_crypto_provider();
        let server = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(answer).with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let config = Config::new(format!("http://{address}").parse().unwrap());
        (server, Client::try_from(config).unwrap())
    }

    /// From now on, for requests whose path has this part.
    pub fn answers(&self, part: &str, answer: Answer) {
        self.0.lock().unwrap().answers.push((part.to_owned(), answer));
    }

    /// The requests so far whose path has this part.
    pub fn requests(&self, part: &str) -> Vec<Request> {
        let inner = self.0.lock().unwrap();
        let requests = inner
            .requests
            .iter()
            .filter(|request| request.path.contains(part));
        requests.cloned().collect()
    }

    pub fn count(&self, part: &str) -> usize {
        self.requests(part).len()
    }

    /// Waits until there are so many.
    pub async fn reaches(&self, part: &str, count: usize) {
        let wait = async {
            while self.count(part) < count {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let in_time = tokio::time::timeout(Duration::from_secs(20), wait).await;
        assert!(
            in_time.is_ok(),
            "{} of {count} requests to {part}",
            self.count(part)
        );
    }
}

async fn answer(State(server): State<Server>, method: Method, uri: Uri, body: Bytes) -> Response {
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let path = uri.to_string();
    let answer = {
        let mut inner = server.0.lock().unwrap();
        let fits = |(part, _): &&(String, Answer)| path.contains(part.as_str());
        let answer = inner
            .answers
            .iter()
            .rev()
            .find(fits)
            .map(|(_, answer)| answer.clone());
        inner.requests.push(Request {
            method,
            path,
            body: body.clone(),
        });
        answer.unwrap_or(Answer::Take)
    };
    match answer {
        Answer::Take => Body::from(body.to_string()).into_response(),
        Answer::List(items) => {
            let list = json!({"metadata": {"resourceVersion": "1"}, "items": items});
            Body::from(list.to_string()).into_response()
        }
        Answer::Refuse(code) => {
            let status = json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "refused by the test", "reason": "Refused", "code": code,
            });
            (StatusCode::from_u16(code).unwrap(), status.to_string()).into_response()
        }
        Answer::Never => std::future::pending().await,
    }
}
