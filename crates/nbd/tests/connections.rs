//! Connections in memory: bounds of what is in flight, ends of connections, hostile clients.

mod support;

use std::cell::RefCell;
use std::rc::Rc;

use support::client::Client;
use support::server::{pattern, serve, serve_with};
use ubcache_env::{Env, Priority, Stream, StreamEnd};
use ubcache_nbd::proto::constants::{IHAVEOPT, MAX_PAYLOAD_BYTES, opt};
use ubcache_nbd::proto::{ClientOption, Command, Request};
use ubcache_nbd::{ProtocolError, ServeError, ServerOptions};

#[test]
fn requests_in_flight_are_bounded() {
    let options =
        ServerOptions { max_requests: 4, max_inflight_bytes: 8192, ..ServerOptions::default() };
    let result = serve_with(options, |server| async move {
        let mut client = Client::go(server.stream.clone(), "", true).await;
        let gates: Vec<_> = (0..6).map(|_| server.first.hold()).collect();
        for _ in 0..6 {
            client.start(Command::Read, 0, 0, 512).await;
        }
        for _ in 0..100 {
            server.env.yield_now().await;
        }
        assert_eq!(server.first.running.get(), 4, "bounded by requests");
        gates.iter().for_each(|gate| gate.set());
        for _ in 0..6 {
            client.answer().await;
        }
        let gates: Vec<_> = (0..3).map(|_| server.first.hold()).collect();
        let writes: Vec<_> = (0..3).map(|at| pattern(4096, at)).collect();
        for (at, content) in writes.iter().enumerate() {
            client.start_write(0, at as u64 * 4096, content).await;
        }
        for _ in 0..100 {
            server.env.yield_now().await;
        }
        assert_eq!(server.first.running.get(), 2, "bounded by bytes");
        assert_eq!(server.stats.snapshot().inflight_bytes, 8192);
        gates.iter().for_each(|gate| gate.set());
        for _ in 0..3 {
            assert_eq!(client.answer().await.error, None);
        }
        // A request larger than the limit goes alone.
        assert_eq!(client.write(0, 0, &pattern(1 << 20, 9)).await, None);
        assert_eq!(client.ask(Command::Read, 0, 0, 1 << 20).await.content, pattern(1 << 20, 9));
        client.leave().await;
    });
    assert_eq!(result, Ok(()));
}

/// Bug: a request to cache a range claimed no memory, and the volume read 16 MiB of it at a time:
/// forty of them took 750 MB. Fix: each claims what the volume has in memory of it.
#[test]
fn requests_to_cache_are_bounded_by_memory() {
    let options = ServerOptions { max_inflight_bytes: 1 << 20, ..ServerOptions::default() };
    let result = serve_with(options, |server| async move {
        let mut client = Client::go(server.stream.clone(), "", true).await;
        let gates: Vec<_> = (0..40).map(|_| server.first.hold()).collect();
        for _ in 0..40 {
            client.start(Command::Cache, 0, 0, 256 << 10).await;
        }
        for _ in 0..200 {
            server.env.yield_now().await;
        }
        assert_eq!(server.first.running.get(), 4, "bounded by bytes");
        gates.iter().for_each(|gate| gate.set());
        for _ in 0..40 {
            assert_eq!(client.answer().await.error, None);
        }
        client.leave().await;
    });
    assert_eq!(result, Ok(()));
}

#[test]
fn server_stops_reading_from_a_client_that_does_not_read() {
    let result = serve(|server| async move {
        let mut client = Client::go(server.stream.clone(), "", false).await;
        let mut out = Vec::new();
        for _ in 0..3000 {
            out.extend(client.request(Command::Read, 0, 0, 65536).1);
        }
        let stream = server.stream.clone();
        server.env.spawn(Priority::Foreground, async move {
            stream.send(ubcache_env::Buf::from_bytes(&out).into()).await.expect("connected");
        });
        for _ in 0..10_000 {
            server.env.yield_now().await;
        }
        let counts = server.stats.snapshot();
        assert!(
            counts.inflight_bytes <= 64 << 20 && counts.inflight_requests <= 1024,
            "{counts:?}"
        );
        assert!(counts.requests() < 1200, "{counts:?}");
        for _ in 0..3000 {
            assert_eq!(client.answer().await.content.len(), 65536);
        }
        client.leave().await;
    });
    assert_eq!(result, Ok(()));
}

#[test]
fn a_disconnect_waits_for_requests_and_sends_their_replies() {
    let result = serve(|server| async move {
        let mut client = Client::go(server.stream.clone(), "", false).await;
        let gate = server.first.hold();
        let cookie = client.start_write(0, 0, &[7; 512]).await;
        client.start(Command::Disconnect, 0, 0, 0).await;
        server.stream.finish();
        for _ in 0..100 {
            server.env.yield_now().await;
        }
        gate.set();
        assert_eq!(client.answer().await.cookie, cookie);
        assert_eq!(client.next().await, None);
        assert_eq!(server.first.content.borrow()[..512], [7; 512]);
    });
    assert_eq!(result, Ok(()));
}

/// A client that only goes away may not have read the replies that were sent to it.
#[test]
fn stream_ends_orderly_only_after_a_disconnect() {
    for (says_so, end) in [(true, StreamEnd::Orderly), (false, StreamEnd::Cut)] {
        let volume = Rc::new(RefCell::new(None));
        let seen = volume.clone();
        let result = serve(move |server| async move {
            *seen.borrow_mut() = Some(server.first.clone());
            let mut client = Client::go(server.stream.clone(), "", false).await;
            if says_so {
                client.start(Command::Disconnect, 0, 0, 0).await;
            }
            server.stream.finish();
            assert_eq!(client.next().await, None);
        });
        assert_eq!(result, Ok(()));
        let volume = volume.take().expect("the connection was served");
        assert_eq!(*volume.ends.borrow(), [end]);
    }
}

#[test]
fn requests_of_a_vanished_client_still_complete() {
    let result = serve(|server| async move {
        let mut client = Client::go(server.stream.clone(), "", false).await;
        let gate = server.first.hold();
        client.start_write(0, 0, &[7; 512]).await;
        for _ in 0..100 {
            server.env.yield_now().await;
        }
        server.stream.close();
        for _ in 0..100 {
            server.env.yield_now().await;
        }
        assert_eq!(server.first.running.get(), 1, "the write goes on");
        gate.set();
    });
    assert_eq!(result, Err(ServeError::Disconnected), "the reply could not be sent");
}

#[test]
fn connection_cut_inside_a_request_ends_with_an_error() {
    let write =
        Request { flags: 0, command: Command::Write, cookie: 1, offset: 0, length: 131_072 };
    let mut request = Vec::new();
    write.encode(&mut request);
    let mut with_payload = request.clone();
    with_payload.extend([1; 1000]);
    for (bytes, expected) in [
        (vec![], Ok(())),
        (request[..13].to_vec(), Err(ServeError::Disconnected)),
        (request.clone(), Err(ServeError::Disconnected)),
        (with_payload, Err(ServeError::Disconnected)),
    ] {
        let result = serve(move |server| async move {
            let mut client = Client::go(server.stream.clone(), "", false).await;
            client.send(&bytes).await.expect("connected");
            server.stream.finish();
            assert_eq!(client.next().await, None);
            assert!(server.first.asked.borrow().is_empty(), "a write without its payload is none");
        });
        assert_eq!(result, expected);
    }
    // During the negotiation.
    for (bytes, expected) in [(&[][..], Ok(())), (&[0, 0], Err(ServeError::Disconnected))] {
        let result = serve(move |server| async move {
            let mut client = Client::new(server.stream.clone());
            client.next().await;
            client.send(bytes).await.expect("connected");
            server.stream.finish();
            assert_eq!(client.next().await, None);
        });
        assert_eq!(result, expected);
    }
}

#[test]
fn hostile_bytes_end_only_their_connection() {
    let mut long_option = IHAVEOPT.to_be_bytes().to_vec();
    long_option.extend([0, 0, 0, 7, 0xff, 0xff, 0xff, 0xff]);
    let mut endless = Vec::new();
    (0..1025).for_each(|_| ClientOption::Unknown(77).encode(&mut endless));
    for (bytes, error) in [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), None),
        (long_option, Some(ProtocolError::OptionTooLong { option: opt::GO, length: u32::MAX })),
        (endless, Some(ProtocolError::TooManyOptions(1024))),
    ] {
        let result = serve(move |server| async move {
            let mut client = Client::hello(server.stream.clone()).await;
            let _ = client.send(&bytes).await;
            while client.next().await.is_some() {}
        });
        match (result, error) {
            (Err(ServeError::Protocol(found)), Some(error)) => assert_eq!(found, error),
            (Err(ServeError::Protocol(ProtocolError::BadMagic { .. })), None) => {}
            other => panic!("{other:?}"),
        }
    }
    let result = serve(|server| async move {
        let mut client = Client::new(server.stream.clone());
        client.next().await;
        client.send(&[0, 0, 0, 0xff]).await.expect("connected");
        assert_eq!(client.next().await, None);
    });
    assert_eq!(result, Err(ProtocolError::UnknownClientFlags(0xff).into()));

    // A request is in flight, and is not disturbed.
    let result = serve(|server| async move {
        let mut client = Client::go(server.stream.clone(), "", false).await;
        let gate = server.first.hold();
        client.start_write(0, 0, &[7; 512]).await;
        client.start(Command::Write, 0, 0, MAX_PAYLOAD_BYTES + 512).await;
        assert_eq!(client.next().await, None);
        gate.set();
        for _ in 0..100 {
            server.env.yield_now().await;
        }
        assert_eq!(server.first.content.borrow()[..512], [7; 512]);
    });
    assert_eq!(result, Err(ProtocolError::PayloadTooLong(MAX_PAYLOAD_BYTES + 512).into()));
}
