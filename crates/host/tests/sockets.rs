//! Unix and TCP sockets over both backends.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::rc::Rc;

use ubcache_env::local::{Either, first, join};
use ubcache_env::{Buf, Env, IoVec, Nanos, Priority, Stream, StreamError};
use ubcache_host::{Host, HostEnv, HostListener, HostSocket, IoBackend, SocketError};

fn hosts() -> impl Iterator<Item = Host> {
    [IoBackend::Ring, IoBackend::Pool].into_iter().filter_map(|backend| {
        Host::new(backend)
            .inspect_err(|error| println!("skipped: no {backend:?} backend here: {error}"))
            .ok()
    })
}

async fn unix_pair(env: &HostEnv) -> (HostSocket, HostSocket) {
    let directory = tempfile::tempdir().expect("a scratch directory");
    let path = directory.path().join("socket");
    let listener = HostListener::bind_unix(env, &path).expect("it binds");
    let (ours, theirs) = join(listener.accept(), HostSocket::connect_unix(env, &path)).await;
    (ours.expect("accepted"), theirs.expect("connected"))
}

async fn tcp_pair(env: &HostEnv, address: SocketAddr) -> (HostSocket, HostSocket) {
    let listener = HostListener::bind_tcp(env, address).expect("it binds");
    let bound = listener.tcp_address().expect("a TCP listener has an address");
    let (ours, theirs) = join(listener.accept(), HostSocket::connect_tcp(env, bound)).await;
    (ours.expect("accepted"), theirs.expect("connected"))
}

/// Sends in chunks of random size and shape, has them echoed, compares.
async fn echo(env: &HostEnv, client: HostSocket, server: HostSocket) {
    const TOTAL: usize = 6 << 20;
    let echoing = env.spawn(Priority::Foreground, async move {
        let mut buf = Buf::zeroed(100_000);
        loop {
            let (back, received) = server.recv(buf).await;
            let received = received.expect("the connection is fine");
            if received == 0 {
                return;
            }
            server.send(Buf::from_bytes(&back.as_slice()[..received]).into()).await.expect("echo");
            buf = back;
        }
    });
    let client = Rc::new(client);
    let byte_at =
        |position: usize| (position as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()[7];
    let (sender, inner) = (client.clone(), env.clone());
    let sending = env.spawn(Priority::Foreground, async move {
        let mut sent = 0;
        while sent < TOTAL {
            let len = (inner.random() as usize % 300_000 + 1).min(TOTAL - sent);
            let bytes: Vec<u8> = (sent..sent + len).map(byte_at).collect();
            let slice = Buf::from_bytes(&bytes).freeze();
            let step = (inner.random() as usize % 5000 + 1).max(len / 3000);
            let mut vec = IoVec::new();
            for from in (0..len).step_by(step) {
                vec.push(slice.cut(from, (from + step).min(len)));
            }
            sender.send(vec).await.expect("sent");
            sent += len;
        }
    });
    let mut position = 0;
    while position < TOTAL {
        let (buf, received) = client.recv(Buf::zeroed(env.random() as usize % 70_000 + 1)).await;
        let received = received.expect("the connection is fine");
        assert!(received > 0, "the stream ended at byte {position}");
        for byte in &buf.as_slice()[..received] {
            assert_eq!(*byte, byte_at(position), "byte {position}");
            position += 1;
        }
    }
    sending.join().await;
    client.close();
    echoing.join().await;
}

#[test]
fn bytes_are_echoed_over_unix_and_tcp() {
    for host in hosts() {
        let env = host.env();
        host.block_on(async {
            let (ours, theirs) = unix_pair(&env).await;
            echo(&env, ours, theirs).await;
            let (ours, theirs) = tcp_pair(&env, (Ipv4Addr::LOCALHOST, 0).into()).await;
            echo(&env, ours, theirs).await;
            if HostListener::bind_tcp(&env, (Ipv6Addr::LOCALHOST, 0).into()).is_err() {
                println!("skipped: no IPv6 here");
                return;
            }
            let (ours, theirs) = tcp_pair(&env, (Ipv6Addr::LOCALHOST, 0).into()).await;
            echo(&env, ours, theirs).await;
        });
    }
}

#[test]
fn closed_peer_ends_receives_and_sends() {
    for host in hosts() {
        let env = host.env();
        host.block_on(async {
            let (ours, theirs) = unix_pair(&env).await;
            drop(theirs);
            assert_eq!(ours.recv(Buf::zeroed(10)).await.1, Ok(0));
            assert_eq!(ours.send(Buf::zeroed(10).into()).await, Err(StreamError::Closed));
            // Without a reader a send waits; the end of the peer ends it.
            let (ours, theirs) = tcp_pair(&env, (Ipv4Addr::LOCALHOST, 0).into()).await;
            let (sent, ()) = join(ours.send(IoVec::zeroes(64 << 20)), async {
                env.sleep(Nanos::from_millis(20)).await;
                drop(theirs);
            })
            .await;
            assert_eq!(sent, Err(StreamError::Closed));
        });
    }
}

#[test]
fn close_wakes_waiting_calls() {
    for host in hosts() {
        let env = host.env();
        host.block_on(async {
            for tcp in [false, true] {
                let pair = if tcp {
                    tcp_pair(&env, (Ipv4Addr::LOCALHOST, 0).into()).await
                } else {
                    unix_pair(&env).await
                };
                let (ours, _theirs) = pair;
                let ours = Rc::new(ours);
                let (receiver, sender) = (ours.clone(), ours.clone());
                let receiving = env.spawn(Priority::Foreground, async move {
                    let received = receiver.recv(Buf::zeroed(10)).await.1;
                    assert!(matches!(received, Ok(0) | Err(StreamError::Closed)), "{received:?}");
                });
                let sending = env.spawn(Priority::Foreground, async move {
                    assert_eq!(
                        sender.send(IoVec::zeroes(64 << 20)).await,
                        Err(StreamError::Closed)
                    );
                });
                env.sleep(Nanos::from_millis(5)).await;
                assert!(!receiving.is_finished() && !sending.is_finished());
                ours.close();
                receiving.join().await;
                sending.join().await;
                let later = ours.recv(Buf::zeroed(10)).await.1;
                assert!(matches!(later, Ok(0) | Err(StreamError::Closed)));
                assert_eq!(ours.send(Buf::zeroed(1).into()).await, Err(StreamError::Closed));
            }
        });
    }
}

/// A dropped receive or accept consumes nothing.
#[test]
fn dropped_receive_and_accept_lose_nothing() {
    for host in hosts() {
        let env = host.env();
        host.block_on(async {
            let (ours, theirs) = unix_pair(&env).await;
            for _ in 0..50 {
                let outcome = first(ours.recv(Buf::zeroed(4096)), env.yield_now()).await;
                assert!(matches!(outcome, Either::Right(())));
            }
            env.sleep(Nanos::from_millis(1)).await;
            theirs.send(Buf::from_bytes(b"still here").into()).await.expect("sent");
            let (buf, received) = ours.recv(Buf::zeroed(100)).await;
            assert_eq!(&buf.as_slice()[..received.expect("received")], b"still here");

            let directory = tempfile::tempdir().expect("a scratch directory");
            let path = directory.path().join("socket");
            let listener = HostListener::bind_unix(&env, &path).expect("it binds");
            for _ in 0..10 {
                assert!(matches!(
                    first(listener.accept(), env.yield_now()).await,
                    Either::Right(())
                ));
            }
            let (accepted, connected) =
                join(listener.accept(), HostSocket::connect_unix(&env, &path)).await;
            assert!(accepted.is_ok() && connected.is_ok());
        });
    }
}

#[test]
fn stale_unix_sockets_are_replaced_and_live_ones_refused() {
    for host in hosts() {
        let env = host.env();
        let directory = tempfile::tempdir().expect("a scratch directory");
        let path = directory.path().join("socket");
        let listener = HostListener::bind_unix(&env, &path).expect("it binds");
        let metadata = std::fs::metadata(&path).expect("the socket is there");
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        let refused = HostListener::bind_unix(&env, &path).expect_err("somebody listens");
        assert!(matches!(refused, SocketError::InUse { .. }), "{refused}");
        drop(listener);
        assert!(!path.exists(), "removed with its listener");
        // A socket that a dead process has left.
        drop(std::os::unix::net::UnixListener::bind(&path).expect("bound"));
        let refused =
            host.block_on(HostSocket::connect_unix(&env, &path)).expect_err("nobody listens");
        assert!(matches!(refused, SocketError::Refused { .. }), "{refused}");
        let listener = HostListener::bind_unix(&env, &path).expect("a stale socket is replaced");
        // A newer socket of the same name is not removed.
        std::fs::remove_file(&path).expect("removed");
        std::fs::write(&path, "precious").expect("written");
        drop(listener);
        let refused = HostListener::bind_unix(&env, &path).expect_err("a file is in the way");
        assert!(matches!(refused, SocketError::NotASocket { .. }), "{refused}");
        assert_eq!(std::fs::read(&path).expect("left alone"), b"precious");
    }
}
