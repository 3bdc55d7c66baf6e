//! Compressed answers, for those who ask.

use std::io::{self, Write as _};

use bytes::Bytes;
use flate2::write::GzEncoder;
use http::HeaderMap;
use http::header::ACCEPT_ENCODING;

pub(crate) use flate2::Compression;

/// Up to this many bytes are sent as they are: compressing them gains nothing.
pub(crate) const MIN_BYTES: usize = 1 << 10;

/// `bytes` as gzip.
pub(crate) fn gzip(bytes: &[u8], level: Compression) -> io::Result<Bytes> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 4), level);
    encoder.write_all(bytes)?;
    encoder.finish().map(Bytes::from)
}

/// Whether a client takes gzip, and does not like the plain answer better (RFC 9110, section 12.5.3).
pub(crate) fn wants_gzip(headers: &HeaderMap) -> bool {
    let (mut gzip, mut identity, mut any) = (None, None, None);
    let lines = headers.get_all(ACCEPT_ENCODING).into_iter().filter_map(|line| line.to_str().ok());
    for (coding, weight) in lines.flat_map(|line| line.split(',')).filter_map(weighted) {
        if coding.eq_ignore_ascii_case("gzip") || coding.eq_ignore_ascii_case("x-gzip") {
            gzip = Some(weight);
        } else if coding.eq_ignore_ascii_case("identity") {
            identity = Some(weight);
        } else if coding == "*" {
            any = Some(weight);
        }
    }
    let gzip = gzip.or(any).unwrap_or(0.0);
    gzip > 0.0 && gzip >= identity.unwrap_or(0.0)
}

/// A coding with its weight, 0 to 1; nothing if that is no weight.
fn weighted(item: &str) -> Option<(&str, f64)> {
    let mut parts = item.split(';').map(str::trim);
    let coding = parts.next().filter(|coding| !coding.is_empty())?;
    let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
    let weight = weight.map_or(Some(1.0), |text| text.parse().ok())?;
    (0.0..=1.0).contains(&weight).then_some((coding, weight))
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn accepting(lines: &[&str]) -> HeaderMap {
        lines.iter().map(|line| (ACCEPT_ENCODING, HeaderValue::from_str(line).unwrap())).collect()
    }

    #[test]
    fn gzip_goes_to_those_who_take_it() {
        for lines in [
            &["gzip"][..],
            &["gzip, deflate, br, zstd"],
            &["X-GZIP"],
            &["br", "gzip;q=0.001"],
            &["*"],
            &["deflate, *;q=0.1"],
            &["gzip ; q=0.5 , identity;q=0.5"],
            &["identity;q=0, gzip"],
            &["*;q=0, gzip"],
        ] {
            assert!(wants_gzip(&accepting(lines)), "{lines:?}");
        }
        for lines in [
            &[][..],
            &[""],
            &["br"],
            &["gzip;q=0"],
            &["gzip; Q=0.000"],
            &["*, gzip;q=0"],
            &["identity, gzip;q=0.5"],
            &["gzip;q=2"],
            &["gzip;q=nan"],
            &["gzip;q="],
            &["gzippy"],
            &["identity;q=1, *;q=0.5"],
        ] {
            assert!(!wants_gzip(&accepting(lines)), "{lines:?}");
        }
    }

    proptest! {
        #[test]
        fn nobody_gets_what_they_refuse(
            items in prop::collection::vec(
                (prop::sample::select(vec!["gzip", "GZip", "identity", "br", "*"]), prop::option::of(0..=1000_u16)), 0..5),
            split in 0..5_usize,
        ) {
            let text = |(coding, weight): &(&str, Option<u16>)| match weight {
                Some(weight) => format!("{coding};q={}.{:03}", weight / 1000, weight % 1000),
                None => (*coding).to_owned(),
            };
            let (first, rest) = items.split_at(split.min(items.len()));
            let lines = [first, rest].map(|items| items.iter().map(text).collect::<Vec<_>>().join(", "));
            let wants = wants_gzip(&accepting(&[&lines[0], &lines[1]]));
            // The last of several of a name counts.
            let weight = |name: &str| items.iter().rev().find(|item| item.0.eq_ignore_ascii_case(name)).map(|item| item.1.unwrap_or(1000));
            let gzip = weight("gzip").or(weight("*"));
            prop_assert_eq!(wants, gzip.is_some_and(|gzip| gzip > 0 && gzip >= weight("identity").unwrap_or(0)));
        }

        #[test]
        fn what_is_compressed_comes_out_again(bytes: Vec<u8>) {
            let mut out = Vec::new();
            flate2::read::GzDecoder::new(&*gzip(&bytes, Compression::fast()).unwrap()).read_to_end(&mut out).unwrap();
            prop_assert_eq!(out, bytes);
        }
    }
}
