//! Connections on which both sides have proved which member they are.
//!
//! TLS 1.3 only. Both sides show a certificate; each must be signed by the cluster's authority. The one who connects
//! accepts only the very member that it wanted; the one who accepts takes the name from the certificate and looks it up
//! in the list of members. Then both exchange a [hello](crate::frame::exchange_hello), so that a node which the other
//! side refuses learns why in [`Tls::connect`] and not at its first request. Sessions are resumed as rustls does by
//! default; membership is checked on every connection nevertheless.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout_at;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use webpki::EndEntityCert;

use crate::cluster::{Identity, Members};
use crate::frame::{self, FrameError};

/// An authenticated, encrypted connection to a member. Split it with [`tokio::io::split`].
pub type Stream = tokio_rustls::TlsStream<TcpStream>;

/// Why there is no connection. The stream, if there was one, is closed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The node's own keys cannot be used.
    #[error("this node's certificate or key cannot be used: {0}. Copy its bundle again")]
    Setup(String),
    /// The wanted peer is not in the list.
    #[error("{0} is not a member of this cluster. See members.toml for the names")]
    NoSuchMember(String),
    /// No TCP connection.
    #[error("cannot reach {member} at {address}: {source}. Is its daemon running?")]
    Unreachable {
        /// The wanted member.
        member: String,
        /// Its address.
        address: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// It took too long.
    #[error("{peer} did not complete the connection within {after_ms} ms")]
    Timeout {
        /// Member name or address.
        peer: String,
        /// The limit.
        after_ms: u128,
    },
    /// TLS failed: wrong authority, wrong name, no certificate, or not TLS at all.
    #[error("{peer} did not prove that it is a member of this cluster: {source}")]
    Handshake {
        /// Member name or address.
        peer: String,
        /// The library's reason.
        source: io::Error,
    },
    /// The peer's certificate is good but its name is not listed (a revoked member, or our list is old).
    #[error("a node with a certificate for {0:?} connected, but that is not a member (any more) in members.toml")]
    Stranger(String),
    /// The hello failed.
    #[error("{peer}: {source}")]
    Hello {
        /// Member name or address.
        peer: String,
        /// What was wrong.
        source: FrameError,
    },
}

/// The member at the other end of an accepted connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerName {
    /// Member name, proved by its certificate.
    pub name: String,
    /// Its id.
    pub id: u32,
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// Opens and accepts connections as one node. Cheap to clone. Made anew when the list of members changes.
#[derive(Clone)]
pub struct Tls {
    members: Arc<Members>,
    connector: TlsConnector,
    acceptor: TlsAcceptor,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("members", &self.members).finish_non_exhaustive()
    }
}

impl Tls {
    /// Prepares both roles.
    ///
    /// # Errors
    /// [`TlsError::Setup`] if certificate and key do not fit together.
    pub fn new(identity: &Identity) -> Result<Self, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(identity.ca().clone()).map_err(setup)?;
        let roots = Arc::new(roots);
        Ok(Self {
            members: Arc::new(identity.members().clone()),
            connector: TlsConnector::from(Arc::new(client_config(identity, &provider, &roots)?)),
            acceptor: TlsAcceptor::from(Arc::new(server_config(identity, provider, roots)?)),
        })
    }

    /// The members that this instance knows.
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// Connects to `member` at its listed address; `timeout` bounds the whole.
    ///
    /// # Errors
    /// [`TlsError::NoSuchMember`], [`TlsError::Unreachable`], [`TlsError::Timeout`], [`TlsError::Handshake`] (also if
    /// another member answers at that address), [`TlsError::Hello`] (also if the peer refuses us).
    pub async fn connect(&self, member: &str, timeout: Duration) -> Result<Stream, TlsError> {
        let Some(known) = self.members.get(member) else {
            return Err(TlsError::NoSuchMember(member.to_owned()));
        };
        let address = known.address;
        let deadline = tokio::time::Instant::now() + timeout;
        let tcp = timeout_at(deadline, TcpStream::connect(address))
            .await
            .map_err(|_| timed_out(member, timeout))?
            .map_err(|source| TlsError::Unreachable { member: member.to_owned(), address, source })?;
        timeout_at(deadline, self.client(tcp, member)).await.map_err(|_| timed_out(member, timeout))?
    }

    /// As [`Tls::connect`], over a TCP connection that the caller made (e.g. from a certain address or namespace).
    ///
    /// # Errors
    /// As [`Tls::connect`], but for `Unreachable`.
    pub async fn connect_over(&self, tcp: TcpStream, member: &str, timeout: Duration) -> Result<Stream, TlsError> {
        if self.members.get(member).is_none() {
            return Err(TlsError::NoSuchMember(member.to_owned()));
        }
        tokio::time::timeout(timeout, self.client(tcp, member)).await.map_err(|_| timed_out(member, timeout))?
    }

    /// Completes a connection that came in; `timeout` bounds the whole, so that a silent stranger holds nothing for long.
    /// Run it in a task of its own, and bound the number of those.
    ///
    /// # Errors
    /// [`TlsError::Timeout`], [`TlsError::Handshake`], [`TlsError::Stranger`] (the peer is told), [`TlsError::Hello`].
    pub async fn accept(&self, tcp: TcpStream, timeout: Duration) -> Result<(Stream, PeerName), TlsError> {
        let from = tcp.peer_addr().map_or_else(|_| "a peer".to_owned(), |a| a.to_string());
        tokio::time::timeout(timeout, self.server(tcp, &from)).await.map_err(|_| timed_out(&from, timeout))?
    }

    async fn client(&self, tcp: TcpStream, member: &str) -> Result<Stream, TlsError> {
        let failed = |source| TlsError::Handshake { peer: member.to_owned(), source };
        tcp.set_nodelay(true).map_err(failed)?;
        let name = ServerName::try_from(member.to_owned()).map_err(|_| TlsError::NoSuchMember(member.to_owned()))?;
        let mut stream = Stream::Client(self.connector.connect(name, tcp).await.map_err(failed)?);
        hello(&mut stream, member, true).await?;
        Ok(stream)
    }

    async fn server(&self, tcp: TcpStream, from: &str) -> Result<(Stream, PeerName), TlsError> {
        let failed = |source| TlsError::Handshake { peer: from.to_owned(), source };
        tcp.set_nodelay(true).map_err(failed)?;
        let stream = self.acceptor.accept(tcp).await.map_err(failed)?;
        let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let name = certificate.and_then(certified_name).unwrap_or_default();
        let mut stream = Stream::Server(stream);
        let Some(member) = self.members.get(&name) else {
            // Best effort: the peer learns why it is refused. What it answers does not matter.
            let _ = frame::exchange_hello(&mut stream, false).await;
            let _ = stream.shutdown().await;
            return Err(TlsError::Stranger(name));
        };
        let peer = PeerName { name, id: member.id };
        hello(&mut stream, &peer.name, true).await?;
        Ok((stream, peer))
    }
}

async fn hello(stream: &mut Stream, peer: &str, accept: bool) -> Result<(), TlsError> {
    frame::exchange_hello(stream, accept).await.map_err(|source| match source {
        // In TLS 1.3 a client hears of a refused certificate only when it first reads.
        FrameError::Io(source) => TlsError::Handshake { peer: peer.to_owned(), source },
        source => TlsError::Hello { peer: peer.to_owned(), source },
    })
}

fn client_config(identity: &Identity, provider: &Arc<CryptoProvider>, roots: &Arc<RootCertStore>) -> Result<ClientConfig, TlsError> {
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider)).build().map_err(setup)?;
    ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&TLS13])
        .map_err(setup)?
        .with_webpki_verifier(verifier)
        .with_client_auth_cert(vec![identity.cert().clone()], identity.key().clone_key())
        .map_err(setup)
}

fn server_config(identity: &Identity, provider: Arc<CryptoProvider>, roots: Arc<RootCertStore>) -> Result<ServerConfig, TlsError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider)).build().map_err(setup)?;
    ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(setup)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![identity.cert().clone()], identity.key().clone_key())
        .map_err(setup)
}

/// The one DNS name of a certificate that was already verified.
fn certified_name(certificate: &CertificateDer<'static>) -> Option<String> {
    let certificate = EndEntityCert::try_from(certificate).ok()?;
    let mut names = certificate.valid_dns_names();
    let name = names.next()?.to_owned();
    // Our authority issues exactly one name: anything else is not ours, and ambiguous.
    names.next().is_none().then_some(name)
}

fn setup(error: impl fmt::Display) -> TlsError {
    TlsError::Setup(error.to_string())
}

fn timed_out(peer: &str, after: Duration) -> TlsError {
    TlsError::Timeout { peer: peer.to_owned(), after_ms: after.as_millis() }
}
