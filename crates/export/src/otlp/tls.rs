//! TLS to a collector.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore, WantsVerifier, crypto};

use crate::config::Tls;

/// TLS that cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    #[error("cannot read {} as PEM", path.display())]
    File { path: PathBuf, source: pem::Error },
    #[error("{} holds no certificate", .0.display())]
    NoCertificate(PathBuf),
    #[error("the system has no certificates to check the collector's with")]
    NoRoots,
    #[error("the certificate or key cannot be used")]
    Rejected(#[from] rustls::Error),
}

/// As the files say.
pub(super) fn client(files: &Tls) -> Result<ClientConfig, TlsError> {
    let mut roots = RootCertStore::empty();
    match &files.certificate {
        Some(path) => certificates(path)?.into_iter().try_for_each(|certificate| roots.add(certificate))?,
        None => {
            // What of them cannot be used is not what the collector's hangs on, or that fails and says so.
            let found = rustls_native_certs::load_native_certs();
            if roots.add_parsable_certificates(found.certs).0 == 0 {
                return Err(TlsError::NoRoots);
            }
        }
    }
    let config = builder()?.with_root_certificates(roots);
    Ok(match &files.client {
        Some((chain, key)) => config.with_client_auth_cert(certificates(chain)?, private_key(key)?)?,
        None => config.with_no_client_auth(),
    })
}

/// One with which no connection can be made.
pub(super) fn none() -> Result<ClientConfig, TlsError> {
    Ok(builder()?.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
}

fn builder() -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, TlsError> {
    let provider = Arc::new(crypto::ring::default_provider());
    Ok(ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unread = |source| TlsError::File { path: path.to_owned(), source };
    let found = CertificateDer::pem_file_iter(path).map_err(unread)?;
    let found = found.collect::<Result<Vec<_>, _>>().map_err(unread)?;
    if found.is_empty() { Err(TlsError::NoCertificate(path.to_owned())) } else { Ok(found) }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(|source| TlsError::File { path: path.to_owned(), source })
}
