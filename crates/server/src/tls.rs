//! What TLS is spoken with, by the files that the configuration names.

use std::error::Error;
use std::path::Path;

use mcpscope_config::{self as config, ConfigErrors, Settings};
use mcpscope_proxy::http::{Tls, Upstream};
use mcpscope_tls::{Holds, Identity, TlsError, check};

use crate::failure::{Failure, say};
use crate::instance::Instance;

const CERT: &str = "tls.cert_file";
const KEY: &str = "tls.key_file";
const CLIENT_CA: &str = "tls.client_ca_file";
const UPSTREAM_CA: &str = "proxy.upstream_ca_file";

/// Each key, and the file that it names, if it does.
fn named(settings: &Settings) -> [(&'static str, Holds, Option<&Path>); 4] {
    let config::Tls { cert_file, key_file, client_ca_file } = &settings.tls;
    [
        (CERT, Holds::Chain, cert_file.as_deref()),
        (KEY, Holds::Key, key_file.as_deref()),
        (CLIENT_CA, Holds::Authorities, client_ca_file.as_deref()),
        (UPSTREAM_CA, Holds::Authorities, settings.proxy.upstream_ca_file.as_deref()),
    ]
}

/// What a relay in front of `upstream` speaks TLS with; or all that is wrong with the files, each by the place where it is named,
/// from where it is looked for.
pub(crate) fn tls(instance: &Instance, upstream: &Upstream) -> Result<Tls, Failure> {
    let refused = |key, error: &TlsError| instance.places.refuse(key, &told(error));
    let named = named(&instance.settings);
    let files = named.map(|(key, _, path)| path.map(|path| instance.places.resolve(key, path)));
    let mistakes = named.iter().zip(&files).filter_map(|(&(key, holds, _), file)| {
        // Nobody is checked against the last but an upstream with TLS.
        let file = file.as_ref().filter(|_| key != UPSTREAM_CA || upstream.is_secure())?;
        check(file, holds).err().and_then(|error| refused(key, &error))
    });
    ConfigErrors::none_of(mistakes).map_err(Failure::usage)?;

    let [chain, key, client_ca, upstream_ca] = files;
    let identity = chain.zip(key).map(|(chain, key)| Identity { chain, key });
    let accept = identity.map(|identity| mcpscope_tls::server(&identity, client_ca.as_deref()));
    let accept = accept.transpose().map_err(|error| {
        let key = match &error {
            TlsError::Clients { .. } => CLIENT_CA,
            TlsError::Mismatch(_) => KEY,
            _ => CERT,
        };
        let mistake = ConfigErrors::none_of(refused(key, &error));
        mistake.map_or_else(Failure::usage, |()| Failure::usage(error))
    })?;
    let connect = upstream.is_secure().then(|| mcpscope_tls::client(upstream_ca.as_deref(), None));
    let connect = connect.transpose();
    let connect = connect.map_err(|error| Failure::usage(anyhow::anyhow!(error).context("TLS to the upstream")))?;
    Ok(Tls::new(connect, accept))
}

/// An error with its cause.
fn told(error: &TlsError) -> String {
    error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

/// Says so if there are certificates to check a server by that shows none.
pub(crate) fn say_unused_ca(settings: &Settings, upstream: &Upstream) {
    if settings.proxy.upstream_ca_file.is_some() && !upstream.is_secure() {
        say(format_args!(
            "mcpscope: {UPSTREAM_CA}: for `https` upstreams; {} is none, and does not use it",
            upstream.origin()
        ));
    }
}

/// Says so if any of this is set although `command` does not use it.
pub(crate) fn say_unused(settings: &Settings, command: &str) {
    let set: Vec<_> = named(settings).into_iter().filter(|(.., path)| path.is_some()).map(|(key, ..)| key).collect();
    if !set.is_empty() {
        let keys = set.join(", ");
        say(format_args!("mcpscope: {keys}: for `mcpscope proxy` and `serve`; `{command}` does not use it"));
    }
}
