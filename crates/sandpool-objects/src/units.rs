//! Sizes with units, as people write them: `2Gi`, `256Mi`, `1048576`.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A number of bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

const UNITS: [(&str, u64); 8] = [
    ("Ti", 1 << 40),
    ("Gi", 1 << 30),
    ("Mi", 1 << 20),
    ("Ki", 1 << 10),
    ("T", 1_000_000_000_000),
    ("G", 1_000_000_000),
    ("M", 1_000_000),
    ("k", 1_000),
];

impl Size {
    /// Reads a number with or without a unit: Ki, Mi, Gi, Ti (powers of 1024), k, M, G, T (powers of 1000).
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a size; write bytes, or a number with Ki, Mi, Gi or Ti, such as 512Mi");
        let (number, unit) = UNITS
            .iter()
            .find_map(|(suffix, unit)| text.strip_suffix(suffix).map(|number| (number, *unit)))
            .unwrap_or((text, 1));
        if let Ok(whole) = number.parse::<u64>() {
            return whole.checked_mul(unit).map(Self).ok_or_else(|| format!("{text:?} is more than can be counted"));
        }
        // 1.5Gi: whole part and up to three decimals, in integers so that nothing is rounded twice.
        let (whole, decimals) = number.split_once('.').ok_or_else(wrong)?;
        let fits = !decimals.is_empty() && decimals.len() <= 3 && decimals.bytes().all(|b| b.is_ascii_digit());
        let whole: u64 = whole.parse().map_err(|_| wrong())?;
        let thousandths: u64 = format!("{decimals:0<3}").parse().map_err(|_| wrong())?;
        if !fits {
            return Err(wrong());
        }
        whole
            .checked_mul(1_000)
            .and_then(|number| number.checked_add(thousandths))
            .and_then(|number| number.checked_mul(unit))
            .map(|number| Self(number / 1_000))
            .ok_or_else(|| format!("{text:?} is more than can be counted"))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let binary = UNITS[..4].iter().find(|(_, unit)| self.0 != 0 && self.0.is_multiple_of(*unit));
        match binary {
            Some((suffix, unit)) => write!(f, "{}{suffix}", self.0 / unit),
            None => write!(f, "{}", self.0),
        }
    }
}

impl fmt::Debug for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as 512Mi")
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Size, E> {
                Ok(Size(bytes))
            }

            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Size, E> {
                u64::try_from(bytes).map(Size).map_err(|_| E::custom(format!("{bytes} is not a size")))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                Size::parse(text).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_kubernetes_writes_them() {
        for (text, bytes) in
            [("2Gi", 2 << 30), ("256Mi", 256 << 20), ("1.5Gi", 3 << 29), ("1k", 1000), ("4096", 4096), ("0", 0)]
        {
            assert_eq!(Size::parse(text), Ok(Size(bytes)), "{text}");
        }
        for bad in ["", "Gi", "-1", "1.Gi", "1.2345Gi", "two", "1 Gi", "99999999Ti", "1e3", "1.-5Gi"] {
            assert!(Size::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_size_prints_as_it_can_be_read() {
        for bytes in [0, 1, 1023, 1024, 2 << 30, (2 << 30) + 1, u64::MAX] {
            assert_eq!(Size::parse(&Size(bytes).to_string()), Ok(Size(bytes)));
        }
    }
}
