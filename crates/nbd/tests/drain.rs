//! The end of connections from the server's side.

mod support;

use std::rc::Rc;

use support::client::Client;
use support::server::{pattern, serve_with};
use ubcache_env::Env;
use ubcache_nbd::proto::{Command, ErrorCode, Request};
use ubcache_nbd::{Drain, ServeError, ServerOptions};

fn draining() -> (ServerOptions, Rc<Drain>) {
    let options = ServerOptions::default();
    let drain = options.drain.clone();
    (options, drain)
}

/// Bug: a stop cut connections at once: a write in flight took effect and was never answered.
/// Fix: what is in flight is answered, what comes is refused, and only then the stream is closed.
#[test]
fn requests_in_flight_are_answered_and_new_ones_refused() {
    let (options, drain) = draining();
    let result = serve_with(options, |server| async move {
        let mut client = Client::go(server.stream.clone(), "", true).await;
        let gate = server.first.hold();
        let slow = client.start_write(0, 0, &pattern(4096, 1)).await;
        while server.first.running.get() == 0 {
            server.env.yield_now().await;
        }
        drain.begin();
        assert_eq!(client.ask(Command::Read, 0, 0, 512).await.error, Some(ErrorCode::Shutdown));
        assert_eq!(client.ask(Command::Flush, 0, 0, 0).await.error, Some(ErrorCode::Shutdown));
        let refused = client.write(0, 8192, &pattern(200_000, 2)).await;
        assert_eq!(refused, Some(ErrorCode::Shutdown), "the payload passes");
        gate.set();
        let answer = client.answer().await;
        assert_eq!((answer.cookie, answer.error), (slow, None));
        assert_eq!(client.next().await, None, "nothing is in flight: the server closes");
        assert_eq!(server.first.content.borrow()[..4096], pattern(4096, 1));
        assert_eq!(server.first.asked.borrow().len(), 1);
    });
    assert_eq!(result, Ok(()));
}

#[test]
fn an_idle_connection_is_closed_at_once() {
    let (options, drain) = draining();
    let result = serve_with(options, |server| async move {
        let mut client = Client::go(server.stream.clone(), "", false).await;
        drain.begin();
        assert_eq!(client.next().await, None);
    });
    assert_eq!(result, Ok(()));
}

#[test]
fn a_client_that_never_sends_its_payload_is_not_waited_for() {
    let (options, drain) = draining();
    let result = serve_with(options, |server| async move {
        let mut client = Client::go(server.stream.clone(), "", false).await;
        let write =
            Request { flags: 0, command: Command::Write, cookie: 1, offset: 0, length: 131_072 };
        let mut bytes = Vec::new();
        write.encode(&mut bytes);
        bytes.extend([1; 1000]);
        client.send(&bytes).await.expect("connected");
        while server.stats.snapshot().inflight_requests == 0 {
            server.env.yield_now().await;
        }
        drain.begin();
        assert_eq!(client.next().await, None);
        assert!(server.first.asked.borrow().is_empty());
    });
    assert_eq!(result, Err(ServeError::Disconnected));
}

#[test]
fn a_request_that_waits_for_room_is_answered() {
    let (options, drain) = draining();
    let options = ServerOptions { max_requests: 1, ..options };
    let result = serve_with(options, |server| async move {
        let mut client = Client::go(server.stream.clone(), "", false).await;
        let gate = server.first.hold();
        let (first, second) =
            (client.start(Command::Read, 0, 0, 512).await, client.start(Command::Flush, 0, 0, 0));
        let second = second.await;
        for _ in 0..100 {
            server.env.yield_now().await;
        }
        drain.begin();
        gate.set();
        for cookie in [first, second] {
            let answer = client.answer().await;
            assert_eq!((answer.cookie, answer.error), (cookie, None), "it came before");
        }
        assert_eq!(client.next().await, None);
    });
    assert_eq!(result, Ok(()));
}
