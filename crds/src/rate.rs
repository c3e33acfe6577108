//! Rates as people write them: a Kubernetes quantity of bits a second.

use std::{fmt, str::FromStr};

/// Bits a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rate(pub u64);

/// Less would hold a frame up for seconds.
const MIN: u64 = 64_000;
/// Characters of a text that is none.
const MAX_SHOWN: usize = 40;
const MAX: u64 = 10_000_000_000_000;

/// Why a text is no rate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is no rate: write bits a second from 64k to 10T, such as 50M or 1.5G")]
pub struct NoRate(String);

impl Rate {
    pub const fn from_mbps(mbps: u32) -> Self {
        Self(mbps as u64 * 1_000_000)
    }
}

impl FromStr for Rate {
    type Err = NoRate;

    /// Reads a quantity (Kubernetes' resource.Quantity, without exponents) of bits a second.
    fn from_str(text: &str) -> Result<Self, NoRate> {
        let fails = || NoRate(text.chars().take(MAX_SHOWN).collect());
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let factor: u64 = match &text[digits.len()..] {
            "" => 1,
            "k" => 1_000,
            "M" => 1_000_000,
            "G" => 1_000_000_000,
            "T" => 1_000_000_000_000,
            "Ki" => 1 << 10,
            "Mi" => 1 << 20,
            "Gi" => 1 << 30,
            "Ti" => 1 << 40,
            _ => return Err(fails()),
        };
        let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
        let plain = |text: &str| text.len() <= 12 && text.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !plain(whole) || !plain(part) || digits.ends_with('.') {
            return Err(fails());
        }
        let number = |text: &str| text.parse::<u128>().unwrap_or_default();
        let scale = 10u128.pow(part.len() as u32);
        let bits = (number(whole) * scale + number(part)) * u128::from(factor) / scale;
        match u64::try_from(bits) {
            Ok(bits) if (MIN..=MAX).contains(&bits) => Ok(Self(bits)),
            _ => Err(fails()),
        }
    }
}

impl fmt::Display for Rate {
    /// With the largest unit that leaves a whole number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [
            (1_000_000_000_000, "T"),
            (1_000_000_000, "G"),
            (1_000_000, "M"),
            (1_000, "k"),
        ];
        let unit = units
            .into_iter()
            .find(|(factor, _)| self.0 != 0 && self.0.is_multiple_of(*factor));
        let (factor, unit) = unit.unwrap_or((1, ""));
        write!(f, "{}{unit}", self.0 / factor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read() {
        for (text, bits, shown) in [
            ("50M", 50_000_000, "50M"),
            ("1.5G", 1_500_000_000, "1500M"),
            ("64000", 64_000, "64k"),
            ("1Gi", 1 << 30, "1073741824"),
            ("0.25M", 250_000, "250k"),
        ] {
            let rate: Rate = text.parse().unwrap();
            assert_eq!((rate.0, rate.to_string().as_str()), (bits, shown), "{text}");
        }
    }

    #[test]
    fn what_is_none_is_refused_with_what_to_write() {
        for text in [
            "",
            "M",
            "-5M",
            "5m",
            "5 M",
            "1e9",
            "63k",
            "99999T",
            ".5G",
            "5.G",
            "0",
            "٣M",
            "5MM",
            "9999999999999999999",
        ] {
            let error = text.parse::<Rate>().unwrap_err().to_string();
            assert!(error.contains(&format!("\"{text}\" is no rate")), "{error}");
        }
    }
}
