#![doc = include_str!("../README.md")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore, ServerConfig, WantsVerifier, crypto};

/// Who one is: a certificate and its key, each the name of a PEM file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The certificate, and behind it those that vouch for it.
    pub chain: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// TLS that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or is no PEM.
    #[error("cannot read {} as PEM", path.display())]
    File {
        /// Its name.
        path: PathBuf,
        /// What is wrong with it.
        source: pem::Error,
    },
    /// A file has nothing in it.
    #[error("{} holds no certificate", .0.display())]
    NoCertificate(PathBuf),
    /// The system has no certificates to check a server's with.
    #[error("the system has no certificates to check the server's with")]
    NoRoots,
    /// rustls cannot use what the files hold.
    #[error("the certificate or key cannot be used")]
    Rejected(#[from] rustls::Error),
    /// The certificates cannot vouch for clients.
    #[error("the certificates in {} cannot be used to check clients", path.display())]
    Clients {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: VerifierBuilderError,
    },
}

/// A client that checks servers against the certificates of a PEM file, or without one against the system's, and says who it is
/// if it is told to.
///
/// # Errors
/// A file cannot be used, or the system has no certificates.
pub fn client(roots: Option<&Path>, identity: Option<&Identity>) -> Result<ClientConfig, TlsError> {
    let roots = match roots {
        Some(path) => store(path)?,
        None => {
            // What of them cannot be used is not what the server's hangs on, or that fails and says so.
            let mut roots = RootCertStore::empty();
            let found = rustls_native_certs::load_native_certs();
            if roots.add_parsable_certificates(found.certs).0 == 0 {
                return Err(TlsError::NoRoots);
            }
            roots
        }
    };
    let config = builder()?.with_root_certificates(roots);
    Ok(match identity {
        Some(Identity { chain, key }) => config.with_client_auth_cert(certificates(chain)?, private_key(key)?)?,
        None => config.with_no_client_auth(),
    })
}

/// A client with which no connection can be made.
///
/// # Errors
/// The cryptography does not go together, which it does.
pub fn no_client() -> Result<ClientConfig, TlsError> {
    Ok(builder()?.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
}

/// A server, which lets in clients with a certificate of `clients` only if that is given.
///
/// # Errors
/// A file cannot be used.
pub fn server(identity: &Identity, clients: Option<&Path>) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let config = match clients {
        Some(path) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store(path)?), provider)
                .build()
                .map_err(|source| TlsError::Clients { path: path.to_owned(), source })?;
            config.with_client_cert_verifier(verifier)
        }
        None => config.with_no_client_auth(),
    };
    Ok(config.with_single_cert(certificates(&identity.chain)?, private_key(&identity.key)?)?)
}

fn builder() -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, TlsError> {
    let provider = Arc::new(crypto::ring::default_provider());
    Ok(ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?)
}

fn store(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    certificates(path)?.into_iter().try_for_each(|certificate| roots.add(certificate))?;
    Ok(roots)
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

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn what_is_wrong_with_a_file_is_said_with_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, content).unwrap();
            path
        };
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (chain, key) = (file("chain.pem", &made.cert.pem()), file("key.pem", &made.signing_key.serialize_pem()));
        let good = Identity { chain: chain.clone(), key };
        server(&good, Some(&chain)).unwrap();
        client(Some(&chain), Some(&good)).unwrap();

        let said = |error: TlsError| match error.source() {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        let (empty, missing) = (file("empty.pem", ""), folder.path().join("missing.pem"));
        let error = said(client(Some(&missing), None).unwrap_err());
        assert!(error.contains("missing.pem") && error.contains("No such file"), "{error}");
        let error = said(client(Some(&empty), None).unwrap_err());
        assert!(error.contains("empty.pem holds no certificate"), "{error}");
        let error = said(server(&Identity { key: empty.clone(), ..good.clone() }, None).unwrap_err());
        assert!(error.contains("cannot read") && error.contains("empty.pem"), "{error}");
        let foreign = file("other.pem", &other.signing_key.serialize_pem());
        let error = said(server(&Identity { key: foreign, ..good.clone() }, None).unwrap_err());
        assert!(error.contains("cannot be used"), "{error}");
        let error = said(server(&good, Some(&empty)).unwrap_err());
        assert!(error.contains("empty.pem holds no certificate"), "{error}");
    }
}
