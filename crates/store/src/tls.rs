//! Certificates: loaded from files, looked at again when they change, so that nothing has to restart for a renewal.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: {what}")]
    File { path: PathBuf, what: String },
    #[error(
        "the certificate {cert} and the key {key} do not belong together or cannot be used: {what}"
    )]
    Pair {
        cert: PathBuf,
        key: PathBuf,
        what: String,
    },
    #[error("a certificate authority ({0}) cannot be used: {1}")]
    Authority(PathBuf, String),
}

/// The files of one side of a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    pub cert: PathBuf,
    pub key: PathBuf,
    pub ca: Option<PathBuf>,
    /// Whether whoever connects must show a certificate of that authority.
    pub ask: bool,
    /// Certificates made by the members themselves: there is no authority to check against.
    pub unverified: bool,
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let bad = |what: String| Error::File {
        path: path.to_path_buf(),
        what,
    };
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path)
        .map_err(|e| bad(e.to_string()))?
        .collect();
    let found = found.map_err(|e| bad(e.to_string()))?;
    if found.is_empty() {
        return Err(bad("there is no certificate in it".to_owned()));
    }
    Ok(found)
}

fn roots(path: &Path) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots
            .add(certificate)
            .map_err(|e| Error::Authority(path.to_path_buf(), e.to_string()))?;
    }
    Ok(roots)
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_file(path).map_err(|e| Error::File {
        path: path.to_path_buf(),
        what: e.to_string(),
    })
}

impl Files {
    fn pair_error(&self) -> impl Fn(rustls::Error) -> Error + '_ {
        |e| Error::Pair {
            cert: self.cert.clone(),
            key: self.key.clone(),
            what: e.to_string(),
        }
    }

    fn server(&self, protocols: &[&str]) -> Result<ServerConfig, Error> {
        let builder = ServerConfig::builder();
        let builder = match self.ca.as_ref().filter(|_| self.ask) {
            Some(ca) => {
                let verifier = WebPkiClientVerifier::builder(Arc::new(roots(ca)?))
                    .build()
                    .map_err(|e| Error::Authority(ca.clone(), e.to_string()))?;
                builder.with_client_cert_verifier(verifier)
            }
            None => builder.with_no_client_auth(),
        };
        let mut config = builder
            .with_single_cert(certificates(&self.cert)?, key(&self.key)?)
            .map_err(self.pair_error())?;
        config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
        Ok(config)
    }

    fn client(&self) -> Result<ClientConfig, Error> {
        let builder = ClientConfig::builder();
        let builder = match &self.ca {
            Some(ca) => builder.with_root_certificates(roots(ca)?),
            None if self.unverified => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Unverified)),
            None => builder.with_root_certificates(roots(&self.cert)?),
        };
        let mut config = builder
            .with_client_auth_cert(certificates(&self.cert)?, key(&self.key)?)
            .map_err(self.pair_error())?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }

    fn stamps(&self) -> Vec<Option<SystemTime>> {
        [Some(&self.cert), Some(&self.key), self.ca.as_ref()]
            .into_iter()
            .flatten()
            .map(|path| std::fs::metadata(path).and_then(|m| m.modified()).ok())
            .collect()
    }
}

/// Something made from files, and made again when they have changed.
#[derive(Debug)]
pub struct Reloading<T> {
    files: Files,
    make: fn(&Files) -> Result<T, Error>,
    state: Mutex<State<T>>,
}

#[derive(Debug)]
struct State<T> {
    current: Arc<T>,
    stamps: Vec<Option<SystemTime>>,
    looked: Instant,
}

pub type Acceptor = Reloading<ServerConfig>;
pub type Connector = Reloading<ClientConfig>;

/// How often files are looked at, at most.
const LOOK: Duration = Duration::from_secs(1);

impl<T> Reloading<T> {
    fn new(files: Files, make: fn(&Files) -> Result<T, Error>) -> Result<Self, Error> {
        let state = State {
            current: Arc::new(make(&files)?),
            stamps: files.stamps(),
            looked: Instant::now(),
        };
        Ok(Self {
            files,
            make,
            state: Mutex::new(state),
        })
    }

    pub fn get(&self) -> Arc<T> {
        let mut state = self.state.lock();
        if state.looked.elapsed() >= LOOK {
            state.looked = Instant::now();
            let stamps = self.files.stamps();
            if stamps != state.stamps {
                match (self.make)(&self.files) {
                    Ok(made) => {
                        tracing::info!("certificates loaded again: {}", self.files.cert.display());
                        state.current = Arc::new(made);
                        state.stamps = stamps;
                    }
                    // Half a renewal: the old ones serve until the rest is there.
                    Err(error) => tracing::warn!("new certificates are not used yet: {error}"),
                }
            }
        }
        state.current.clone()
    }
}

/// For clients: HTTP/2 and HTTP/1.
pub fn acceptor(files: Files) -> Result<Acceptor, Error> {
    Reloading::new(files, |files| files.server(&["h2", "http/1.1"]))
}

pub fn connector(files: Files) -> Result<Connector, Error> {
    Reloading::new(files, Files::client)
}

/// The common name of the certificate that the other side showed.
pub fn common_name(certificates: Option<&[CertificateDer<'_>]>) -> Option<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificates?.first()?).ok()?;
    let name = certificate
        .subject()
        .iter_common_name()
        .next()?
        .as_str()
        .ok()?;
    Some(name.to_owned())
}

pub fn server_name(host: &str) -> io::Result<ServerName<'static>> {
    ServerName::try_from(host.to_owned())
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))
}

/// Makes a certificate that signs itself, in `dir`, unless there is one. `--auto-tls`: encrypted, but whoever connects
/// cannot know to whom.
pub fn self_signed(dir: &Path, hosts: &[String]) -> Result<Files, Error> {
    let files = Files {
        cert: dir.join("cert.pem"),
        key: dir.join("key.pem"),
        ca: None,
        ask: false,
        unverified: true,
    };
    if files.cert.exists() && files.key.exists() {
        return Ok(files);
    }
    let bad = |what: String| Error::File {
        path: dir.to_path_buf(),
        what,
    };
    std::fs::create_dir_all(dir).map_err(|e| bad(e.to_string()))?;
    let made =
        rcgen::generate_simple_self_signed(hosts.to_vec()).map_err(|e| bad(e.to_string()))?;
    write_private(&files.key, &made.signing_key.serialize_pem()).map_err(|e| bad(e.to_string()))?;
    std::fs::write(&files.cert, made.cert.pem()).map_err(|e| bad(e.to_string()))?;
    Ok(files)
}

fn write_private(path: &Path, text: &str) -> io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?
        .write_all(text.as_bytes())
}

#[derive(Debug)]
struct Unverified;

impl rustls::client::danger::ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::ring::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
