#![doc = include_str!("../README.md")]

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{CertificateError, ClientConfig, ConfigBuilder, RootCertStore, ServerConfig, WantsVerifier, crypto};

/// How far a file is looked at for whether it holds an encrypted key, in bytes.
const MAX_KEY_BYTES: u64 = 64 << 10;

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
    /// A file has no certificate in it.
    #[error("{} holds no certificate", .0.display())]
    NoCertificate(PathBuf),
    /// A file has a certificate in it that is none.
    #[error("a certificate in {} cannot be used", path.display())]
    Certificate {
        /// Its name.
        path: PathBuf,
        /// Why not.
        source: rustls::Error,
    },
    /// A file has no private key in it.
    #[error("{} holds no private key", .0.display())]
    NoKey(PathBuf),
    /// A private key is encrypted, and nobody is there to be asked for the password.
    #[error(
        "the private key in {path} is encrypted; `openssl pkey -in {path} -out FILE` asks for its password and decrypts it",
        path = .0.display()
    )]
    EncryptedKey(PathBuf),
    /// A private key is of no known kind.
    #[error("the private key in {} cannot be used", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: rustls::Error,
    },
    /// A private key belongs to another certificate.
    #[error("the private key in {} does not belong to the certificate in {}", .0.key.display(), .0.chain.display())]
    Mismatch(Identity),
    /// The certificate and its key cannot be used together.
    #[error("the certificate in {} cannot be used with the private key in {}", identity.chain.display(), identity.key.display())]
    Identity {
        /// The files.
        identity: Identity,
        /// Why not.
        source: rustls::Error,
    },
    /// The system has no certificates to check a server's with.
    #[error("the system has no certificates to check the server's with")]
    NoRoots,
    /// The cryptography does not go together, which it does.
    #[error("there is no TLS")]
    Cryptography(#[from] rustls::Error),
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
        Some(identity) => {
            let (chain, key) = identity.read()?;
            config.with_client_auth_cert(chain, key).map_err(|error| identity.refused(error))?
        }
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
    let (chain, key) = identity.read()?;
    config.with_single_cert(chain, key).map_err(|error| identity.refused(error))
}

/// What a file is to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// A certificate, and behind it those that vouch for it.
    Chain,
    /// A private key.
    Key,
    /// Certificates that others are checked against.
    Authorities,
}

/// Looks at one file alone, so that all that is wrong can be told at once.
///
/// # Errors
/// It does not hold that.
pub fn check(path: &Path, holds: Holds) -> Result<(), TlsError> {
    match holds {
        Holds::Chain => certificates(path).map(drop),
        Holds::Key => private_key(path).map(drop),
        Holds::Authorities => store(path).map(drop),
    }
}

impl Identity {
    fn read(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
        Ok((certificates(&self.chain)?, private_key(&self.key)?))
    }

    fn refused(&self, error: rustls::Error) -> TlsError {
        match error {
            rustls::Error::InconsistentKeys(_) => TlsError::Mismatch(self.clone()),
            source => TlsError::Identity { identity: self.clone(), source },
        }
    }
}

/// What is wrong with a server's TLS, in plain words where there are any. `trusted` names what its certificate is checked against.
#[must_use]
pub fn explain(error: &rustls::Error, trusted: &str) -> Option<String> {
    let rustls::Error::InvalidCertificate(certificate) = error else {
        return match error {
            rustls::Error::InvalidMessage(_) => {
                Some("it speaks no TLS on this port; check https:// and the port".into())
            }
            rustls::Error::AlertReceived(rustls::AlertDescription::CertificateRequired) => {
                Some("it wants a certificate of its client".into())
            }
            rustls::Error::AlertReceived(rustls::AlertDescription::NoApplicationProtocol) => {
                Some("it does not speak this protocol over TLS; check protocol and port".into())
            }
            _ => None,
        };
    };
    match certificate {
        // A certificate made anew under the same name has another key than the one that is trusted.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            Some(format!("its certificate is of no known authority; see {trusted}"))
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            Some("its certificate has expired".into())
        }
        CertificateError::Other(other) if other.0.to_string() == "CaUsedAsEndEntity" => {
            Some("its certificate is an authority's, which no server may show; make one with CA:FALSE".into())
        }
        CertificateError::Other(other) if other.0.to_string() == "UnsupportedCertVersion" => {
            Some("its certificate is of an old version, without subjectAltName; make one with it".into())
        }
        _ => None,
    }
}

fn builder() -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, TlsError> {
    let provider = Arc::new(crypto::ring::default_provider());
    Ok(ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?)
}

fn store(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    let refused = |source| TlsError::Certificate { path: path.to_owned(), source };
    certificates(path)?.into_iter().try_for_each(|certificate| roots.add(certificate)).map_err(refused)?;
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unread = |source| TlsError::File { path: path.to_owned(), source };
    let found = CertificateDer::pem_file_iter(path).map_err(unread)?;
    let found = found.collect::<Result<Vec<_>, _>>().map_err(unread)?;
    if found.is_empty() { Err(TlsError::NoCertificate(path.to_owned())) } else { Ok(found) }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let key = PrivateKeyDer::from_pem_file(path).map_err(|source| match source {
        _ if is_encrypted(path) => TlsError::EncryptedKey(path.to_owned()),
        pem::Error::NoItemsFound => TlsError::NoKey(path.to_owned()),
        source => TlsError::File { path: path.to_owned(), source },
    })?;
    let provider = crypto::ring::default_provider().key_provider;
    let refused = |source| TlsError::Key { path: path.to_owned(), source };
    provider.load_private_key(key.clone_key()).map_err(refused)?;
    Ok(key)
}

/// Whether a file says that it holds an encrypted key, in either of the two forms that there are (RFC 5958, RFC 1421).
fn is_encrypted(path: &Path) -> bool {
    let mut text = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_KEY_BYTES).read_to_end(&mut text));
    let text = String::from_utf8_lossy(&text);
    read.is_ok() && ["BEGIN ENCRYPTED PRIVATE KEY", "Proc-Type: 4,ENCRYPTED"].iter().any(|mark| text.contains(mark))
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    /// A server's certificate as a client judges it, in words.
    fn judged(server: &rcgen::Certificate, key: &rcgen::KeyPair, trusted: &rcgen::Certificate) -> Option<String> {
        let provider = Arc::new(crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(trusted.der().clone()).unwrap();
        let config = builder().unwrap().with_root_certificates(roots).with_no_client_auth();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let serving = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let serving = serving.with_no_client_auth().with_single_cert(vec![server.der().clone()], key).unwrap();
        let mut client = rustls::ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
        let mut server = rustls::ServerConnection::new(Arc::new(serving)).unwrap();
        for _ in 0..10 {
            let mut bytes = Vec::new();
            client.write_tls(&mut bytes).unwrap();
            server.read_tls(&mut bytes.as_slice()).unwrap();
            let _ = server.process_new_packets();
            let mut bytes = Vec::new();
            server.write_tls(&mut bytes).unwrap();
            client.read_tls(&mut bytes.as_slice()).unwrap();
            if let Err(error) = client.process_new_packets() {
                return Some(explain(&error, "X").unwrap_or_else(|| error.to_string()));
            }
        }
        None
    }

    #[test]
    fn what_is_wrong_with_a_server_is_said_in_plain_words() {
        let key = rcgen::KeyPair::generate().unwrap();
        let made = |change: fn(&mut rcgen::CertificateParams)| {
            let mut params = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
            change(&mut params);
            params.self_signed(&key).unwrap()
        };
        let good = made(|_| ());
        assert_eq!(judged(&good, &key, &good), None);
        let other = rcgen::generate_simple_self_signed(["other".to_owned()]).unwrap().cert;
        let said = judged(&good, &key, &other).unwrap();
        assert_eq!(said, "its certificate is of no known authority; see X");
        // What `openssl req -x509` makes if it is told nothing else.
        let authority = made(|params| params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained));
        let said = judged(&authority, &key, &authority).unwrap();
        assert!(said.contains("make one with CA:FALSE"), "{said}");
        let old = made(|params| params.not_after = rcgen::date_time_ymd(2001, 1, 1));
        assert_eq!(judged(&old, &key, &old).unwrap(), "its certificate has expired");
        let alert = rustls::Error::AlertReceived(rustls::AlertDescription::NoApplicationProtocol);
        assert!(explain(&alert, "X").unwrap().contains("check protocol and port"));
    }

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
        check(&chain, Holds::Chain).unwrap();

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
        assert!(error.contains("empty.pem holds no private key"), "{error}");
        let foreign = file("other.pem", &other.signing_key.serialize_pem());
        let error = said(server(&Identity { key: foreign, ..good.clone() }, None).unwrap_err());
        let (key, chain) = ("other.pem does not belong to the certificate in ", "chain.pem");
        assert!(error.contains(key) && error.ends_with(chain), "{error}");
        for encrypted in [
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n",
            "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nMIIB\n-----END RSA PRIVATE KEY-----\n",
        ] {
            let key = file("encrypted.pem", encrypted);
            let error = said(server(&Identity { key: key.clone(), ..good.clone() }, None).unwrap_err());
            let decrypts = format!("is encrypted; `openssl pkey -in {} -out FILE`", key.display());
            assert!(error.contains(&decrypts), "{error}");
        }
        let odd = file("odd.pem", "-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----\n");
        let error = said(check(&odd, Holds::Key).unwrap_err());
        assert!(error.contains("the private key in ") && error.contains("odd.pem cannot be used: "), "{error}");
        let odd = file("ca.pem", "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n");
        let error = said(check(&odd, Holds::Authorities).unwrap_err());
        assert!(error.contains("a certificate in ") && error.contains("ca.pem cannot be used: "), "{error}");
        let error = said(server(&good, Some(&empty)).unwrap_err());
        assert!(error.contains("empty.pem holds no certificate"), "{error}");
    }
}
