//! From a question and a table to an answer. Pure.

use hickory_proto::{
    op::ResponseCode,
    rr::{
        LowerName, Name, RData, Record, RecordType,
        rdata::{A, AAAA, NS, SOA},
    },
};

use crate::zone::{self, ZoneTable};

/// Seconds that a record may be kept: an endpoint that is gone must be forgotten at once.
pub const TTL: u32 = 1;

/// What is said.
#[derive(Debug, PartialEq)]
pub struct Answer {
    pub code: ResponseCode,
    pub records: Vec<Record>,
    /// The SOA record that makes a negative answer cacheable (RFC 2308 §3).
    pub authority: Option<Record>,
}

/// Answers one question. `turn` rotates the addresses, so that clients that take the first spread over all.
pub fn answer(table: &ZoneTable, name: &LowerName, kind: RecordType, turn: usize) -> Answer {
    let apex = zone::apex();
    if !apex.zone_of(name) {
        return Answer {
            code: ResponseCode::Refused,
            records: vec![],
            authority: None,
        };
    }
    let Some(addresses) = table.get(name) else {
        return Answer {
            code: ResponseCode::NXDomain,
            records: vec![],
            authority: Some(soa(table)),
        };
    };
    let owner = Name::from(name);
    let record = |data: RData| Record::from_rdata(owner.clone(), TTL, data);
    let v4 = || addresses.v4.iter().map(|ip| record(RData::A(A(*ip))));
    let v6 = || addresses.v6.iter().map(|ip| record(RData::AAAA(AAAA(*ip))));
    let mut records: Vec<Record> = match kind {
        RecordType::A => v4().collect(),
        RecordType::AAAA => v6().collect(),
        RecordType::ANY => v4().chain(v6()).collect(),
        RecordType::SOA if *name == apex => vec![soa(table)],
        RecordType::NS if *name == apex => vec![record(RData::NS(NS(server())))],
        _ => vec![],
    };
    if !records.is_empty() {
        let shift = turn % records.len();
        records.rotate_left(shift);
    }
    let authority = records.is_empty().then(|| soa(table));
    Answer {
        code: ResponseCode::NoError,
        records,
        authority,
    }
}

/// `ns.slice.local.`: a name for the records that must have one; it has no address of its own.
fn server() -> Name {
    let apex = Name::from(&zone::apex());
    apex.prepend_label("ns").expect("a short label")
}

fn soa(table: &ZoneTable) -> Record {
    let second = i32::try_from(TTL).expect("small");
    let apex = Name::from(&zone::apex());
    let mailbox = apex.prepend_label("hostmaster").expect("a short label");
    let soa = SOA::new(server(), mailbox, table.serial, second, second, second, TTL);
    Record::from_rdata(apex, TTL, RData::SOA(soa))
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use super::*;
    use crate::zone::{tables, tests::service};

    #[track_caller]
    fn check(name: &str, kind: RecordType, code: ResponseCode, expected: &[&str]) {
        let tables = tables(
            ["shop"],
            &[service("shop", "a", false, &["10.80.0.1", "10.80.0.2"])],
        );
        let answer = answer(&tables.all, &LowerName::from_str(name).unwrap(), kind, 0);
        let data: Vec<String> = answer
            .records
            .iter()
            .map(|record| record.data.to_string())
            .collect();
        assert_eq!(
            (answer.code, data),
            (code, expected.iter().map(ToString::to_string).collect())
        );
        let negative = expected.is_empty() && code != ResponseCode::Refused;
        assert_eq!(
            answer.authority.is_some(),
            negative,
            "RFC 2308: a negative answer carries the SOA"
        );
    }

    #[test]
    fn names_that_exist_are_answered_or_have_no_data() {
        check(
            "web.cart.svc.shop.slice.local.",
            RecordType::A,
            ResponseCode::NoError,
            &["10.80.0.1", "10.80.0.2"],
        );
        check(
            "WEB.cart.svc.shop.slice.local.",
            RecordType::A,
            ResponseCode::NoError,
            &["10.80.0.1", "10.80.0.2"],
        );
        check(
            "web.cart.svc.shop.slice.local.",
            RecordType::AAAA,
            ResponseCode::NoError,
            &[],
        );
        check(
            "cart.svc.shop.slice.local.",
            RecordType::A,
            ResponseCode::NoError,
            &[],
        );
        check(
            "slice.local.",
            RecordType::NS,
            ResponseCode::NoError,
            &["ns.slice.local."],
        );
    }

    /// Agents ask for it, to know whether names resolve: it depends on no service.
    #[test]
    fn the_zone_itself_is_always_there() {
        let answer = answer(&tables([], &[]).all, &zone::apex(), RecordType::SOA, 7);
        let kinds: Vec<_> = answer.records.iter().map(Record::record_type).collect();
        assert_eq!(
            (answer.code, kinds),
            (ResponseCode::NoError, vec![RecordType::SOA])
        );
    }

    #[test]
    fn names_that_do_not_exist_are_said_not_to() {
        check(
            "api.cart.svc.shop.slice.local.",
            RecordType::A,
            ResponseCode::NXDomain,
            &[],
        );
        check("example.org.", RecordType::A, ResponseCode::Refused, &[]);
    }

    #[test]
    fn the_first_address_takes_turns() {
        let tables = tables(
            ["shop"],
            &[service("shop", "a", false, &["10.80.0.1", "10.80.0.2"])],
        );
        let name = LowerName::from_str("web.cart.svc.shop.slice.local.").unwrap();
        let first = |turn| {
            answer(&tables.all, &name, RecordType::A, turn).records[0]
                .data
                .to_string()
        };
        assert_eq!(
            [first(0), first(1), first(2)],
            ["10.80.0.1", "10.80.0.2", "10.80.0.1"]
        );
    }
}
