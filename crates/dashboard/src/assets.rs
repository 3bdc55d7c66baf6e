//! The page and what it is made of, built into the program.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher as _};

use bytes::Bytes;
use http::header::{
    CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH, REFERRER_POLICY, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use warp::reply::Response;

use crate::compress::{self, Compression, wants_gzip};

macro_rules! files {
    ($($path:literal,)*) => { &[$(($path, include_bytes!(concat!("../static/", $path)).as_slice())),*] };
}

/// Everything in `static/` that a browser loads, and the licences of what others wrote of it.
const FILES: &[(&str, &[u8])] = files![
    "app.js",
    "ask.js",
    "chaos.js",
    "charts.js",
    "connection.js",
    "engine.js",
    "filter.js",
    "format.js",
    "health.js",
    "icon.svg",
    "index.html",
    "metrics.js",
    "report.js",
    "route.js",
    "stop.js",
    "store.js",
    "style.css",
    "theme.js",
    "token.js",
    "tools.js",
    "traces.js",
    "vendor/LICENSE-htm",
    "vendor/LICENSE-preact",
    "vendor/LICENSE-uPlot",
    "vendor/htm.js",
    "vendor/preact-hooks.js",
    "vendor/preact.js",
    "vendor/uPlot.css",
    "vendor/uPlot.js",
    "view.js",
    "waterfall.js",
];

/// The page itself.
pub(crate) const PAGE: &str = "index.html";

/// Nothing comes from elsewhere, goes elsewhere or is written into the page; nobody shows it in a frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                      connect-src 'self'; font-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What every asset is sent with. It is asked about again each time it is used, so a new version is seen at once.
const HEADERS: [(HeaderName, &str); 5] = [
    (CACHE_CONTROL, "no-cache"),
    (CONTENT_SECURITY_POLICY, POLICY),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (REFERRER_POLICY, "no-referrer"),
    (VARY, "accept-encoding"),
];

/// The files by path, each also compressed where that makes it smaller.
#[derive(Debug)]
pub(crate) struct Assets(BTreeMap<&'static str, Asset>);

#[derive(Debug)]
struct Asset {
    content_type: &'static str,
    plain: Representation,
    gzip: Option<Representation>,
}

#[derive(Debug)]
struct Representation {
    bytes: Bytes,
    tag: String,
}

impl Assets {
    pub(crate) fn new() -> Self {
        Self(FILES.iter().map(|(path, bytes)| (*path, Asset::new(path, bytes))).collect())
    }

    /// The answer to who asks for the file of this path with these headers; nothing if there is none.
    pub(crate) fn answer(&self, path: &str, asked: &HeaderMap) -> Option<Response> {
        let asset = self.0.get(path)?;
        let compressed = asset.gzip.as_ref().filter(|_| wants_gzip(asked));
        let chosen = compressed.unwrap_or(&asset.plain);
        let known = is_known(asked, &chosen.tag);
        let mut response = Response::new(if known { Bytes::new() } else { chosen.bytes.clone() }.into());
        let headers = response.headers_mut();
        for (name, value) in HEADERS {
            headers.insert(name, HeaderValue::from_static(value));
        }
        if let Ok(tag) = HeaderValue::from_str(&chosen.tag) {
            headers.insert(ETAG, tag);
        }
        if known {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            return Some(response);
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(asset.content_type));
        if compressed.is_some() {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        Some(response)
    }
}

impl Asset {
    fn new(path: &str, bytes: &'static [u8]) -> Self {
        let gzip = compress::gzip(bytes, Compression::best()).ok().filter(|gzip| gzip.len() < bytes.len());
        Self {
            content_type: content_type(path),
            plain: Representation::new(Bytes::from_static(bytes)),
            gzip: gzip.map(Representation::new),
        }
    }
}

impl Representation {
    fn new(bytes: Bytes) -> Self {
        let mut hasher = DefaultHasher::new();
        hasher.write(&bytes);
        Self { tag: format!("\"{:016x}\"", hasher.finish()), bytes }
    }
}

/// Whether the client says that it has the version of this tag.
fn is_known(asked: &HeaderMap, tag: &str) -> bool {
    let lines = asked.get_all(IF_NONE_MATCH).into_iter().filter_map(|line| line.to_str().ok());
    let mut tags = lines.flat_map(|line| line.split(',')).map(str::trim);
    tags.any(|known| known == "*" || known.strip_prefix("W/").unwrap_or(known) == tag)
}

fn content_type(path: &str) -> &'static str {
    match path.rsplit_once('.').map(|(_, extension)| extension) {
        Some("html") => "text/html; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("svg") => "image/svg+xml",
        Some("png") => "image/png",
        Some("json") => "application/json",
        _ => "text/plain; charset=utf-8",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    /// What is there for those who work on the page.
    fn is_for_tools(path: &str) -> bool {
        path.ends_with(".d.ts") || ["jsconfig.json", "vendor/manifest.json"].contains(&path)
    }

    fn files(folder: &Path, root: &Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                files(&path, root, found);
            } else {
                found.insert(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
            }
        }
    }

    #[test]
    fn everything_in_the_folder_is_built_in() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("static");
        let mut found = BTreeSet::new();
        files(&root, &root, &mut found);
        found.retain(|path| !is_for_tools(path));
        let listed: Vec<_> = FILES.iter().map(|(path, _)| *path).collect();
        assert_eq!(listed, found.iter().collect::<Vec<_>>(), "the list in assets.rs, in order, and the folder");
    }

    #[test]
    fn a_type_is_guessed_for_none_but_the_licences() {
        for (path, _) in FILES {
            assert!(content_type(path) != content_type("") || path.contains("LICENSE"), "{path}");
        }
    }

    #[test]
    fn the_versions_of_a_file_have_tags_of_their_own() {
        let (assets, mut tags) = (Assets::new(), BTreeSet::new());
        for asset in assets.0.values() {
            for version in [Some(&asset.plain), asset.gzip.as_ref()].into_iter().flatten() {
                assert!(tags.insert(&version.tag));
            }
        }
        assert!(assets.0[PAGE].gzip.is_some());
    }

    #[test]
    fn a_known_tag_is_found_in_any_list() {
        let asked = |lines: &[&str]| {
            lines.iter().map(|line| (IF_NONE_MATCH, HeaderValue::from_str(line).unwrap())).collect::<HeaderMap>()
        };
        for lines in [&["\"a\""][..], &["W/\"a\""], &["\"b\", \"a\""], &["\"b\"", "\"a\""], &["*"]] {
            assert!(is_known(&asked(lines), "\"a\""), "{lines:?}");
        }
        for lines in [&[][..], &["\"b\""], &["a"], &["\"aa\""], &["w/\"a\""]] {
            assert!(!is_known(&asked(lines), "\"a\""), "{lines:?}");
        }
    }
}
