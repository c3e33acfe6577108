//! Label selectors as kubectl takes them: `team=shop,tier in (api,web),!legacy`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{Expression, Selector};

/// Reads a selector.
///
/// # Errors
/// Names the part that is none.
pub(crate) fn parse(text: &str) -> Result<LabelSelector, String> {
    let expressions: Vec<Expression> = parts(text).map(expression).collect::<Result<_, _>>()?;
    if expressions.is_empty() {
        return Err("it selects by nothing: write such as team=shop".to_owned());
    }
    Ok(expressions.into_iter().collect::<Selector>().into())
}

/// Commas within brackets separate values, the others expressions.
fn parts(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0;
    let outer = move |letter: char| {
        match letter {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        letter == ',' && depth == 0
    };
    text.split(outer).map(str::trim).filter(|part| !part.is_empty())
}

fn expression(part: &str) -> Result<Expression, String> {
    let bad = || {
        format!(
            "\"{part}\" selects nothing: write key=value, key!=value, key in (a,b), key notin (a,b), key or !key"
        )
    };
    let is_key = |key: &str| {
        !key.is_empty()
            && key
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte))
    };
    let is_value = |value: &str| {
        value.len() <= 63
            && value
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    let checked = |key: &str, values: &[&str]| -> Result<(String, Vec<String>), String> {
        let (key, values): (_, Vec<&str>) = (key.trim(), values.iter().map(|value| value.trim()).collect());
        match is_key(key) && values.iter().all(|value| is_value(value)) {
            true => Ok((
                key.to_owned(),
                values.into_iter().map(ToOwned::to_owned).collect(),
            )),
            false => Err(bad()),
        }
    };
    let set = |rest: &str| -> Result<Vec<String>, String> {
        let inner = rest
            .trim()
            .strip_prefix('(')
            .and_then(|rest| rest.strip_suffix(')'))
            .ok_or_else(bad)?;
        let values: Vec<&str> = inner.split(',').collect();
        Ok(checked("key", &values)?.1)
    };
    if let Some((key, rest)) = part.split_once(" notin ") {
        return Ok(Expression::NotIn(
            checked(key, &[])?.0,
            set(rest)?.into_iter().collect(),
        ));
    }
    if let Some((key, rest)) = part.split_once(" in ") {
        return Ok(Expression::In(
            checked(key, &[])?.0,
            set(rest)?.into_iter().collect(),
        ));
    }
    if let Some((key, value)) = part.split_once("!=") {
        let (key, mut values) = checked(key, &[value])?;
        return Ok(Expression::NotEqual(key, values.remove(0)));
    }
    if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        let (key, mut values) = checked(key, &[value])?;
        return Ok(Expression::Equal(key, values.remove(0)));
    }
    match part.strip_prefix('!') {
        Some(key) => Ok(Expression::DoesNotExist(checked(key, &[])?.0)),
        None => Ok(Expression::Exists(checked(part, &[])?.0)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kube::core::SelectorExt;

    use super::*;

    #[track_caller]
    fn check(text: &str, labels: &[(&str, &str)], matches: bool) {
        let selector = Selector::try_from(parse(text).unwrap()).unwrap();
        let labels: BTreeMap<_, _> = labels
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        assert_eq!(selector.matches(&labels), matches, "{text}");
    }

    #[test]
    fn selectors_are_kubectls() {
        check("team=shop", &[("team", "shop")], true);
        check(
            "team==shop, tier in (api,web)",
            &[("team", "shop"), ("tier", "web")],
            true,
        );
        check(
            "team=shop,tier in (api,web)",
            &[("team", "shop"), ("tier", "db")],
            false,
        );
        check("tier notin (api, web)", &[("tier", "db")], true);
        check("a.example/team!=shop", &[("a.example/team", "bank")], true);
        check("team,!legacy", &[("team", "")], true);
        check("team,!legacy", &[("team", ""), ("legacy", "")], false);
    }

    #[test]
    fn what_selects_nothing_is_named() {
        for text in ["", "tier in api", "te am=x", "=x", "team=a b"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse("a=b,tier in api").unwrap_err().contains("\"tier in api\""));
    }
}
