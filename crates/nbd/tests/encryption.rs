//! Negotiation on a stream where TLS comes first. In place of TLS, bytes change by a pattern after
//! a hello from both sides; `ubcache-tls` has the real one.

mod support;

use std::cell::Cell;
use std::rc::Rc;

use proptest::prelude::*;
use support::client::{Client, Heard};
use support::server::{error_kind, go, query};
use support::volume::MemoryVolume;
use support::world::{Duplex, TestEnv, duplex};
use ubcache_env::local::join;
use ubcache_env::{Buf, IoVec, Protection, Stream, StreamError, StreamId};
use ubcache_nbd::proto::constants::{IHAVEOPT, opt, rep};
use ubcache_nbd::proto::{ClientOption, Command, InfoQuery, OptionReply, ProtocolError};
use ubcache_nbd::{Exports, ServeError, ServerOptions, serve_connection};

const HELLO: [u8; 5] = *b"hello";

/// A stream that is veiled after a hello from both sides.
struct Veiled {
    stream: Rc<Duplex>,
    veiled: Cell<bool>,
    goodbyes: Cell<u32>,
}

impl Veiled {
    fn new(stream: Rc<Duplex>) -> Rc<Veiled> {
        Rc::new(Veiled { stream, veiled: Cell::new(false), goodbyes: Cell::new(0) })
    }

    fn veil(&self, bytes: &mut [u8]) {
        if self.veiled.get() {
            bytes.iter_mut().for_each(|byte| *byte ^= 0x5a);
        }
    }

    /// The client's side of the handshake.
    async fn ask(&self) {
        self.stream.send(Buf::from_bytes(&HELLO).into()).await.expect("connected");
        let (answer, _) = self.stream.recv(Buf::zeroed(HELLO.len())).await;
        assert_eq!(answer.as_slice(), HELLO);
        self.veiled.set(true);
    }
}

impl Stream for Veiled {
    async fn recv_at(&self, into: Buf, at: usize) -> (Buf, Result<usize, StreamError>) {
        let (mut into, received) = self.stream.recv_at(into, at).await;
        let end = at + received.as_ref().map_or(0, |bytes| *bytes);
        self.veil(&mut into.as_mut_slice()[at..end]);
        (into, received)
    }

    async fn send(&self, from: IoVec) -> Result<(), StreamError> {
        let mut bytes = from.to_buf();
        self.veil(bytes.as_mut_slice());
        self.stream.send(bytes.into()).await
    }

    fn close(&self) {
        self.stream.close();
    }

    fn protection(&self) -> Protection {
        if self.veiled.get() { Protection::Encrypted } else { Protection::Required }
    }

    async fn encrypt(&self) -> Result<(), StreamError> {
        let mut hello: Vec<u8> = Vec::new();
        while hello.len() < HELLO.len() {
            let (buf, received) = self.stream.recv(Buf::zeroed(HELLO.len() - hello.len())).await;
            match received? {
                0 => return Err(StreamError::Tls("no hello".into())),
                bytes => hello.extend(&buf.as_slice()[..bytes]),
            }
        }
        if hello != HELLO {
            return Err(StreamError::Tls("not a hello".into()));
        }
        self.stream.send(Buf::from_bytes(&HELLO).into()).await?;
        self.veiled.set(true);
        Ok(())
    }

    async fn say_goodbye(&self) {
        self.goodbyes.set(self.goodbyes.get() + 1);
    }
}

/// Runs a client against a server that requires TLS; gives what became of the connection, and its
/// export.
fn serve<F: Future<Output = ()> + 'static>(
    client: impl FnOnce(Rc<Veiled>) -> F + 'static,
) -> (Result<(), ServeError>, Option<String>) {
    let env = TestEnv::with_buffers(ubcache_env::BufPool::default());
    let (ours, theirs) = duplex(128 << 10);
    let exports = Rc::new(Exports::new());
    exports.add(MemoryVolume::new("secret", 4096)).expect("new name");
    let options = ServerOptions::default();
    let ours = Veiled::new(ours);
    let serving =
        serve_connection(env.clone(), ours.clone(), exports, options.clone(), StreamId(7));
    let client = client(Veiled::new(theirs));
    let (result, ()) = env.run(async move { join(serving, client).await });
    assert_eq!(env.tasks(), 0, "the server waits for its tasks");
    assert_eq!(ours.goodbyes.get() > 0, ours.veiled.get(), "the end is announced inside TLS");
    (result, options.stats.snapshot().export)
}

#[test]
fn nothing_but_tls_and_the_end_is_to_be_had_before_tls() {
    let (result, export) = serve(|stream| async move {
        let mut client = Client::hello(stream.clone()).await;
        let info = InfoQuery { export: "secret".into(), wanted: vec![] };
        for option in [
            ClientOption::List,
            ClientOption::Info(info),
            ClientOption::StructuredReply,
            ClientOption::ListMetaContext(query("secret", &[])),
            ClientOption::SetMetaContext(query("secret", &["base:allocation"])),
            ClientOption::Unknown(77),
        ] {
            let replies = client.option(option).await;
            assert_eq!(error_kind(&replies), Some(rep::ERR_TLS_REQD), "{replies:?}");
        }
        // Here the test client would wait for transmission.
        let mut out = Vec::new();
        go("secret", &[]).encode(&mut out);
        client.send(&out).await.expect("connected");
        let replies = client.option_replies(opt::GO).await;
        assert_eq!(error_kind(&replies), Some(rep::ERR_TLS_REQD));
        assert_eq!(client.option(ClientOption::Abort).await, [OptionReply::Ack]);
        assert_eq!(client.next().await, None);
    });
    assert_eq!((result, export), (Err(ServeError::TlsRequired), None));
}

#[test]
fn old_style_client_is_disconnected_before_tls() {
    let (result, export) = serve(|stream| async move {
        let mut client = Client::hello(stream.clone()).await;
        let mut out = Vec::new();
        ClientOption::ExportName("secret".into()).encode(&mut out);
        client.send(&out).await.expect("connected");
        assert_eq!(client.next().await, None);
    });
    assert_eq!((result, export), (Err(ServeError::TlsRequired), None));
}

#[test]
fn client_is_served_inside_tls_and_agrees_on_everything_anew() {
    let (result, export) = serve(|stream| async move {
        let mut client = Client::hello(stream.clone()).await;
        let refused = client.option(ClientOption::StructuredReply).await;
        assert_eq!(error_kind(&refused), Some(rep::ERR_TLS_REQD));
        assert_eq!(client.option(ClientOption::StartTls).await, [OptionReply::Ack]);
        stream.ask().await;
        let contexts = ClientOption::SetMetaContext(query("secret", &["base:allocation"]));
        let early = client.option(contexts).await;
        assert_eq!(error_kind(&early), Some(rep::ERR_INVALID), "structured replies come first");
        let again = client.option(ClientOption::StartTls).await;
        assert_eq!(error_kind(&again), Some(rep::ERR_INVALID));
        assert_eq!(client.option(go("secret", &[])).await.last(), Some(&OptionReply::Ack));
        assert_eq!(client.write(0, 4096, &[7; 4096]).await, None);
        assert_eq!(client.ask(Command::Read, 0, 4096, 4096).await.content, [7; 4096]);
        client.leave().await;
    });
    assert_eq!((result, export), (Ok(()), Some("secret".into())));
}

#[test]
fn request_for_tls_takes_no_data() {
    let (result, _) = serve(|stream| async move {
        let mut client = Client::hello(stream.clone()).await;
        let mut out = Vec::new();
        out.extend(IHAVEOPT.to_be_bytes());
        out.extend(opt::STARTTLS.to_be_bytes());
        out.extend([0, 0, 0, 3, 1, 2, 3]);
        client.send(&out).await.expect("connected");
        let replies = client.option_replies(opt::STARTTLS).await;
        assert_eq!(error_kind(&replies), Some(rep::ERR_INVALID));
        assert_eq!(client.option(ClientOption::StartTls).await, [OptionReply::Ack]);
        stream.ask().await;
        assert_eq!(client.option(ClientOption::Abort).await, [OptionReply::Ack]);
    });
    assert_eq!(result, Ok(()));
}

/// Bytes that somebody else puts into the connection before TLS must not be taken for words of the
/// client, who is known only inside TLS.
#[test]
fn bytes_in_the_clear_behind_the_request_for_tls_are_not_obeyed() {
    for behind in [1, 8, 16] {
        let (result, export) = serve(move |stream| async move {
            let mut client = Client::hello(stream.clone()).await;
            let mut out = Vec::new();
            ClientOption::StartTls.encode(&mut out);
            let end = out.len() + behind;
            go("secret", &[]).encode(&mut out);
            out.truncate(end);
            client.send(&out).await.expect("connected");
            assert_eq!(client.next().await, None, "not even an acknowledgement");
        });
        let error = ServeError::Protocol(ProtocolError::BytesBeforeTls);
        assert_eq!((result, export), (Err(error), None), "{behind}");
    }
}

#[test]
fn end_of_the_client_in_the_handshake_is_an_error() {
    let (result, _) = serve(|stream| async move {
        let mut client = Client::hello(stream.clone()).await;
        assert_eq!(client.option(ClientOption::StartTls).await, [OptionReply::Ack]);
        stream.close();
    });
    assert_eq!(result, Err(ServeError::Stream(StreamError::Tls("no hello".into()))));
}

/// A message of a hostile client.
fn message() -> impl Strategy<Value = Vec<u8>> {
    let option = |option: ClientOption| {
        let mut out = Vec::new();
        option.encode(&mut out);
        Just(out)
    };
    let data = proptest::collection::vec(any::<u8>(), 0..24);
    let framed = (0..12_u32, data.clone()).prop_map(|(code, data)| {
        let length = (data.len() as u32).to_be_bytes();
        [&IHAVEOPT.to_be_bytes()[..], &code.to_be_bytes(), &length, &data].concat()
    });
    prop_oneof![
        3 => option(ClientOption::StartTls),
        1 => option(go("secret", &[])),
        1 => option(ClientOption::ExportName("secret".into())),
        1 => option(ClientOption::List),
        1 => Just(HELLO.to_vec()),
        2 => framed,
        1 => data,
    ]
}

proptest! {
    /// Any bytes: the server neither panics nor waits for ever, and no export is to be had without
    /// the hello that stands for TLS.
    #[test]
    fn no_bytes_reach_an_export_without_tls(
        messages in proptest::collection::vec((message(), any::<bool>()), 0..12),
    ) {
        let said_hello = messages.iter().any(|(message, _)| message == &HELLO);
        let (_, export) = serve(move |stream| async move {
            let mut client = Client::new(stream.clone());
            assert_eq!(client.next().await, Some(Heard::Greeting(3)));
            let mut out = vec![0, 0, 0, 3];
            for (message, waits) in messages {
                out.extend(message);
                if waits {
                    let _ = client.send(&std::mem::take(&mut out)).await;
                    // The server has its turn.
                    let _ = stream.stream.send(IoVec::new()).await;
                }
            }
            let _ = client.send(&out).await;
            stream.stream.finish();
            while let (_, Ok(1..)) = stream.stream.recv(Buf::zeroed(4096)).await {}
        });
        prop_assert!(export.is_none() || said_hello);
    }
}
