//! The encrypted stream over simulated connections, which cut and delay bytes anywhere, with
//! rustls as the client.
#![allow(
    clippy::disallowed_methods,
    reason = "certificates are made in the real world, with its clock"
)]

use std::cell::RefCell;
use std::io::{Read, Write};
use std::process::Command;
use std::rc::Rc;
use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig};
use ubcache_env::local::join;
use ubcache_env::{Buf, Nanos, Protection, Stream, StreamError};
use ubcache_sim::{Rng, SimStream, SimWorld, WorldConfig};
use ubcache_tls::{Files, TlsStream, load};

/// Configurations of both sides; none if there is no certtool to make certificates.
static CONFIGS: LazyLock<Option<(Arc<ServerConfig>, Arc<ClientConfig>)>> = LazyLock::new(|| {
    let directory = tempfile::tempdir().expect("a scratch directory");
    let script = "
printf 'cn = x\\nca\\ncert_signing_key\\n' > ca.info
printf 'cn = x\\ndns_name = localhost\\ntls_www_server\\nsigning_key\\n' > server.info
certtool --generate-privkey --key-type ed25519 --outfile ca-key.pem
certtool --generate-self-signed --load-privkey ca-key.pem --template ca.info --outfile ca.pem
certtool --generate-privkey --key-type ed25519 --outfile key.pem
certtool --generate-certificate --load-privkey key.pem --template server.info \
    --load-ca-certificate ca.pem --load-ca-privkey ca-key.pem --outfile certificate.pem
";
    let made = Command::new("sh").args(["-ec", script]).current_dir(directory.path()).output();
    if !made.as_ref().is_ok_and(|made| made.status.success()) {
        println!("SKIPPED: tests of the encrypted stream: not installed: certtool ({made:?})");
        return None;
    }
    let path = |name: &str| directory.path().join(name);
    let files = Files {
        certificate: path("certificate.pem"),
        key: path("key.pem"),
        client_authorities: None,
    };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    let server = load(&files, now.as_secs()).expect("good certificates").config;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(path("ca.pem")).expect("PEM")).expect("an authority");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("TLS")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Some((server, Arc::new(client)))
});

/// A client.
struct Client {
    stream: SimStream,
    tls: RefCell<ClientConnection>,
}

impl Client {
    fn new(stream: SimStream, config: &Arc<ClientConfig>) -> Client {
        let name = ServerName::try_from("localhost").expect("a name");
        let tls = ClientConnection::new(config.clone(), name).expect("a client");
        Client { stream, tls: RefCell::new(tls) }
    }

    fn records(&self) -> Vec<u8> {
        let mut records = Vec::new();
        while self.tls.borrow().wants_write() {
            self.tls.borrow_mut().write_tls(&mut records).expect("memory");
        }
        records
    }

    async fn flush(&self) {
        let records = self.records();
        // The server may have hung up.
        let _ = self.stream.send(Buf::from_bytes(&records).into()).await;
    }

    /// Receives records; content that has come is appended. `false`: the end.
    async fn receive(&self, content: &mut Vec<u8>) -> bool {
        let (buf, received) = self.stream.recv(Buf::zeroed(5000)).await;
        let received = received.unwrap_or(0);
        let mut bytes = &buf.as_slice()[..received];
        let mut tls = self.tls.borrow_mut();
        while !bytes.is_empty() {
            tls.read_tls(&mut bytes).expect("room");
            tls.process_new_packets().expect("the server keeps to the protocol");
            let mut piece = [0; 4096];
            while let Ok(count @ 1..) = tls.reader().read(&mut piece) {
                content.extend(&piece[..count]);
            }
        }
        received > 0
    }

    async fn shake_hands(&self) {
        let mut content = Vec::new();
        while self.tls.borrow().is_handshaking() {
            self.flush().await;
            if self.tls.borrow().is_handshaking() {
                assert!(self.receive(&mut content).await, "the handshake ends well");
            }
        }
        self.flush().await;
        assert!(content.is_empty());
    }

    async fn send(&self, bytes: &[u8], rng: &mut Rng) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let (now, later) =
                rest.split_at(rng.between(1, 20_000).min(rest.len() as u64) as usize);
            if rng.chance(1, 4) {
                self.tls.borrow_mut().refresh_traffic_keys().expect("TLS 1.3");
            }
            self.tls.borrow_mut().writer().write_all(now).expect("memory");
            self.flush().await;
            rest = later;
        }
    }
}

fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    (0..len).map(|_| rng.below(256) as u8).collect()
}

/// Everything arrives as it was sent, in both directions at once, however the network cuts it, and
/// while keys are renewed.
#[test]
fn content_goes_both_ways_at_once_and_whole() {
    let Some((server, client)) = &*CONFIGS else { return };
    for seed in 0..30 {
        let world = SimWorld::new(WorldConfig::new(seed));
        let env = world.env();
        let (server, client) = (server.clone(), client.clone());
        let done = world.run(async move {
            let (ours, theirs) = SimStream::pair(&env, Nanos::from_millis(1));
            let client = Client::new(theirs, &client);
            let sent = pattern(seed, 300_000);
            let serving = async {
                let tls = TlsStream::new(Rc::new(ours), server);
                assert_eq!(tls.protection(), Protection::Required);
                tls.encrypt().await.expect("a handshake");
                assert_eq!(tls.protection(), Protection::Encrypted);
                let mut rng = Rng::new(seed + 1);
                loop {
                    let at = rng.below(100) as usize;
                    let len = at + rng.between(1, 70_000) as usize;
                    let (buf, received) = tls.recv_at(Buf::zeroed(len), at).await;
                    let received = received.expect("connected");
                    if received == 0 {
                        break;
                    }
                    let echo = buf.freeze().cut(at, at + received);
                    tls.send(echo.into()).await.expect("connected");
                }
                tls.say_goodbye().await;
                tls.close();
            };
            let asking = async {
                client.shake_hands().await;
                let mut rng = Rng::new(seed);
                let mut heard = Vec::new();
                let sending = async {
                    client.send(&sent, &mut rng).await;
                    client.tls.borrow_mut().send_close_notify();
                    client.flush().await;
                };
                let hearing = async { while client.receive(&mut heard).await {} };
                join(sending, hearing).await;
                assert_eq!(heard.len(), sent.len());
                assert!(heard == sent, "the same bytes");
                let end = client.tls.borrow_mut().reader().read(&mut [0]);
                assert_eq!(end.ok(), Some(0), "the server announced the end");
            };
            join(serving, asking).await;
        });
        assert_eq!(done, Ok(()), "seed {seed}");
        world.end();
    }
}

/// An end that was not announced may be the work of somebody on the way: it is an error, unless
/// this side has closed the connection.
#[test]
fn end_without_an_announcement_is_an_error() {
    let Some((server, client)) = &*CONFIGS else { return };
    for (announced, closed, spoke) in
        [(true, false, false), (false, false, true), (false, false, false), (false, true, false)]
    {
        let world = SimWorld::new(WorldConfig::new(5));
        let env = world.env();
        let (server, client) = (server.clone(), client.clone());
        let received = world.run(async move {
            let (ours, theirs) = SimStream::pair(&env, Nanos::from_millis(1));
            let client = Client::new(theirs, &client);
            let serving = async {
                let tls = TlsStream::new(Rc::new(ours), server);
                tls.encrypt().await.expect("a handshake");
                if closed {
                    tls.progress().set_closed();
                }
                if spoke {
                    assert_eq!(tls.recv(Buf::zeroed(100)).await.1, Ok(5));
                }
                tls.recv(Buf::zeroed(100)).await.1
            };
            let asking = async {
                client.shake_hands().await;
                if spoke {
                    client.tls.borrow_mut().writer().write_all(b"hello").expect("memory");
                    client.flush().await;
                }
                if announced {
                    client.tls.borrow_mut().send_close_notify();
                    client.flush().await;
                }
                client.stream.close();
            };
            join(serving, asking).await.0
        });
        let received = received.expect("it ends");
        if announced || closed {
            assert_eq!(received, Ok(0));
        } else {
            let Err(StreamError::Tls(words)) = received else { panic!("{received:?}") };
            let expected = if spoke { "close_notify" } else { "it may not accept" };
            assert!(words.contains(expected), "{words}");
        }
        world.end();
    }
}

/// Bytes of a handshake that somebody has changed, cut or added to never do more than end their own
/// connection, with a reason.
#[test]
fn damaged_handshake_ends_with_a_reason() {
    let Some((server, client)) = &*CONFIGS else { return };
    for seed in 0..300 {
        let world = SimWorld::new(WorldConfig::new(seed));
        let env = world.env();
        let (server, client) = (server.clone(), client.clone());
        let shaken = world.run(async move {
            let (ours, theirs) = SimStream::pair(&env, Nanos::from_millis(1));
            let client = Client::new(theirs, &client);
            let mut rng = Rng::new(seed);
            let mut bytes = client.records();
            match rng.below(4) {
                0 => bytes.truncate(rng.below(bytes.len() as u64) as usize),
                1 => bytes = pattern(seed, rng.below(100_000) as usize),
                2 => bytes.extend(pattern(seed, rng.between(1, 30_000) as usize)),
                _ => {
                    for _ in 0..rng.between(1, 8) {
                        let at = rng.below(bytes.len() as u64) as usize;
                        bytes[at] ^= 1 << rng.below(8);
                    }
                }
            }
            let serving = async {
                let tls = TlsStream::new(Rc::new(ours), server);
                let shaken = tls.encrypt().await;
                tls.close();
                shaken
            };
            let asking = async {
                let _ = client.stream.send(Buf::from_bytes(&bytes).into()).await;
                client.stream.close();
                while let (_, Ok(1..)) = client.stream.recv(Buf::zeroed(4096)).await {}
            };
            join(serving, asking).await.0
        });
        let shaken = shaken.expect("it ends");
        let Err(StreamError::Tls(words)) = shaken else { panic!("seed {seed}: {shaken:?}") };
        assert!(!words.is_empty());
        world.end();
    }
}
