//! One question to a name server, as a pod's resolver asks it (RFC 1035, section 7.2), and what came of it.
//!
//! What is answered may come from anybody on the way: it is read by `hickory-proto`, from a buffer of a fixed size, and what does
//! not fit the question is passed over. Deliberately not here: caches, TCP and following a name through zones. Who asks wants to
//! know whether and what a server answers; a truncated answer says so too.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
    time::Duration,
};

use hickory_proto::{
    op::{Message, MessageType, Query, ResponseCode},
    rr::{Name, RecordType},
};
use tokio::{net::UdpSocket, time::timeout};

/// Servers that a resolver asks (resolv.conf(5), `MAXNS`).
const MOST_SERVERS: usize = 3;
/// A question without EDNS is answered in 512 bytes (RFC 1035, section 4.2.1). What is longer is cut by the kernel.
const LARGEST_ANSWER: usize = 512;
/// How often a question is sent before it counts as unanswered: a datagram may be lost.
const ATTEMPTS: u32 = 2;
/// Datagrams that are read for one question: what fits none of it costs no more than that.
const MOST_DATAGRAMS: usize = 16;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// That a zone is served.
    Soa,
}

/// What a server answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// There are records of the kind.
    Records,
    /// The name exists, without such records.
    NoData,
    /// The zone or the name does not exist, or the server will not or cannot say.
    Code(Code),
}

/// Why there is no answer in an answer (RFC 1035, section 4.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    NxDomain,
    ServFail,
    Refused,
    Other(u16),
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NxDomain => f.write_str("NXDOMAIN"),
            Self::ServFail => f.write_str("SERVFAIL"),
            Self::Refused => f.write_str("REFUSED"),
            Self::Other(code) => write!(f, "code {code}"),
        }
    }
}

/// Why nothing is known of an answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("\"{0}\" is no name of DNS")]
    Name(String),
    #[error("it does not answer")]
    Silent,
    /// Also where an ICMP message says that nobody listens.
    #[error("it cannot be asked: {0}")]
    Socket(#[from] io::Error),
}

/// Asks a server by UDP, and waits as long as `patience`.
///
/// # Errors
/// Where it does not answer in time, or cannot be asked.
pub async fn ask(server: SocketAddr, name: &str, kind: Kind, patience: Duration) -> Result<Answer, Error> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    ask_by(&socket, name, kind, patience).await
}

/// Asks by a socket of one's own, which is connected to the server: the kernel passes on what comes from there only.
///
/// # Errors
/// As [`ask`].
pub async fn ask_by(socket: &UdpSocket, name: &str, kind: Kind, patience: Duration) -> Result<Answer, Error> {
    let no_name = || Error::Name(name.to_owned());
    let mut asked = Name::from_str(name).map_err(|_| no_name())?;
    asked.set_fqdn(true);
    let kind = match kind {
        Kind::A => RecordType::A,
        Kind::Aaaa => RecordType::AAAA,
        Kind::Soa => RecordType::SOA,
    };
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(asked, kind));
    let bytes = message.to_vec().map_err(|_| no_name())?;
    let mut failure = Error::Silent;
    for _ in 0..ATTEMPTS {
        let attempt = async {
            socket.send(&bytes).await?;
            await_answer(socket, &message).await
        };
        match timeout(patience / ATTEMPTS, attempt).await {
            Ok(Ok(Some(answer))) => return Ok(answer),
            Ok(Ok(None)) | Err(_) => {}
            // Nobody listens yet, or the route is just being made.
            Ok(Err(error)) => failure = error.into(),
        }
    }
    Err(failure)
}

/// The answer to a question among what comes; none where too much else does.
async fn await_answer(socket: &UdpSocket, question: &Message) -> io::Result<Option<Answer>> {
    let mut buffer = [0; LARGEST_ANSWER];
    for _ in 0..MOST_DATAGRAMS {
        let length = socket.recv(&mut buffer).await?;
        if let Some(answer) = read(&buffer[..length], question) {
            return Ok(Some(answer));
        }
    }
    Ok(None)
}

/// What a datagram answers, where it answers this question.
fn read(datagram: &[u8], question: &Message) -> Option<Answer> {
    let message = Message::from_vec(datagram).ok()?;
    let is_answer = message.metadata.message_type == MessageType::Response
        && message.metadata.id == question.metadata.id
        && message.queries == question.queries;
    if !is_answer {
        return None;
    }
    let kind = question.queries.first()?.query_type();
    Some(match message.metadata.response_code {
        ResponseCode::NoError if message.answers.iter().any(|record| record.record_type() == kind) => {
            Answer::Records
        }
        // What there is did not fit.
        ResponseCode::NoError if message.metadata.truncation => Answer::Records,
        ResponseCode::NoError => Answer::NoData,
        ResponseCode::NXDomain => Answer::Code(Code::NxDomain),
        ResponseCode::ServFail => Answer::Code(Code::ServFail),
        ResponseCode::Refused => Answer::Code(Code::Refused),
        other => Answer::Code(Code::Other(other.into())),
    })
}

/// What a pod's resolver is told (resolv.conf(5)).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    pub servers: Vec<IpAddr>,
    /// The cluster's domain: what is left of a search domain `svc.…`, which the kubelet writes into every pod's.
    pub domain: Option<String>,
}

impl Config {
    /// Reads it as the C library does: what cannot be read is passed over.
    pub fn read(text: &str) -> Self {
        let mut config = Self::default();
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") if config.servers.len() < MOST_SERVERS => {
                    config
                        .servers
                        .extend(words.next().and_then(|word| word.parse::<IpAddr>().ok()));
                }
                // The last line counts.
                Some("search") => {
                    config.domain = words
                        .find_map(|word| word.strip_prefix("svc."))
                        .map(|domain| domain.trim_end_matches('.').to_owned());
                }
                _ => {}
            }
        }
        config
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::{RData, Record, rdata};
    use proptest::prelude::*;

    use super::*;

    const NAME: &str = "kubernetes.default.svc.cluster.local";
    const SHORT: Duration = Duration::from_millis(200);

    fn answer_to(question: &Message, code: ResponseCode, with_record: bool) -> Message {
        let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
        answer.metadata.response_code = code;
        answer.add_queries(question.queries.iter().cloned());
        if with_record {
            let name = question.queries[0].name().clone();
            let record = Record::from_rdata(name, 5, RData::A(rdata::A::new(10, 96, 0, 1)));
            answer.add_answer(record);
        }
        answer
    }

    /// Asks a server that answers each question with these datagrams.
    async fn asked(answers: impl Fn(&Message) -> Vec<Vec<u8>> + Send + 'static) -> Result<Answer, Error> {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        let answering = tokio::spawn(async move {
            let mut buffer = [0; 512];
            loop {
                let (length, from) = server.recv_from(&mut buffer).await.unwrap();
                let question = Message::from_vec(&buffer[..length]).unwrap();
                for answer in answers(&question) {
                    server.send_to(&answer, from).await.unwrap();
                }
            }
        });
        let result = ask(address, NAME, Kind::A, SHORT).await;
        answering.abort();
        result
    }

    #[tokio::test]
    async fn what_a_server_answers_is_told() {
        for (code, with_record, wanted) in [
            (ResponseCode::NoError, true, Answer::Records),
            (ResponseCode::NoError, false, Answer::NoData),
            (ResponseCode::NXDomain, false, Answer::Code(Code::NxDomain)),
            (ResponseCode::ServFail, false, Answer::Code(Code::ServFail)),
            (ResponseCode::Refused, false, Answer::Code(Code::Refused)),
            (ResponseCode::NotImp, false, Answer::Code(Code::Other(4))),
        ] {
            let answer =
                asked(move |question| vec![answer_to(question, code, with_record).to_vec().unwrap()]).await;
            assert_eq!(answer.unwrap(), wanted);
        }
    }

    #[tokio::test]
    async fn what_is_no_answer_to_the_question_is_passed_over() {
        let answer = asked(|question| {
            let right = answer_to(question, ResponseCode::NoError, true);
            let mut of_another = right.clone();
            of_another.metadata.id = right.metadata.id.wrapping_add(1);
            of_another.metadata.response_code = ResponseCode::ServFail;
            let mut about_another = right.clone();
            about_another.queries.clear();
            // A name that points at itself, where the question's is.
            let mut circle = question.to_vec().unwrap()[..12].to_vec();
            circle.extend([0xc0, 12, 0, 1, 0, 1]);
            let echo = question.to_vec().unwrap();
            vec![
                vec![],
                vec![0xff; 512],
                circle,
                echo,
                of_another.to_vec().unwrap(),
                about_another.to_vec().unwrap(),
                right.to_vec().unwrap(),
            ]
        });
        assert_eq!(answer.await.unwrap(), Answer::Records);
    }

    #[tokio::test]
    async fn silence_noise_and_nobody_there_end_in_time() {
        assert!(matches!(asked(|_| vec![]).await, Err(Error::Silent)));
        assert!(matches!(
            asked(|_| vec![vec![0; 40]; 200]).await,
            Err(Error::Silent)
        ));
        let closed = UdpSocket::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap();
        assert!(matches!(
            ask(closed, NAME, Kind::A, SHORT).await,
            Err(Error::Socket(_))
        ));
        assert!(matches!(
            ask(closed, &"a.".repeat(200), Kind::A, SHORT).await,
            Err(Error::Name(_))
        ));
    }

    proptest! {
        /// What somebody on the way makes of an answer, and what is none.
        #[test]
        fn no_datagram_is_too_odd(
            noise in proptest::collection::vec(any::<u8>(), 0..LARGEST_ANSWER),
            changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..8),
            cut in any::<proptest::sample::Index>(),
        ) {
            let mut question = Message::query();
            question.add_query(Query::query(Name::from_ascii(format!("{NAME}.")).unwrap(), RecordType::A));
            read(&noise, &question);
            let mut answer = answer_to(&question, ResponseCode::NoError, true).to_vec().unwrap();
            prop_assert_eq!(read(&answer, &question), Some(Answer::Records));
            for (at, byte) in changes {
                let at = at.index(answer.len());
                answer[at] = byte;
            }
            read(&answer, &question);
            let length = cut.index(answer.len());
            read(&answer[..length], &question);
        }
    }

    #[test]
    fn servers_and_domain_are_read() {
        let text = "# a comment\nsearch weft-system.svc.eu.example svc.eu.example eu.example\nnameserver 10.96.0.10\n\
                    nameserver x\nnameserver fd00::a\nnameserver 192.0.2.1\nnameserver 192.0.2.2\noptions ndots:5\n";
        let servers = ["10.96.0.10", "fd00::a", "192.0.2.1"];
        let wanted = Config {
            servers: servers.map(|server| server.parse().unwrap()).to_vec(),
            domain: Some("eu.example".to_owned()),
        };
        assert_eq!(Config::read(text), wanted);
        assert_eq!(Config::read("nameserver\nsearch example.org"), Config::default());
    }
}
