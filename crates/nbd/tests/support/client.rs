//! A client for tests, made of the codec.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use ubcache_env::{Buf, Stream, StreamError};
use ubcache_nbd::proto::constants::opt;
use ubcache_nbd::proto::{
    Chunk, ClientDecoder, ClientEvent, ClientOption, Command, ErrorCode, InfoQuery, MetaQuery,
    OptionReply, Request, StatusExtent, encode_client_flags,
};

/// The answer to a request.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Answer {
    pub cookie: u64,
    pub error: Option<ErrorCode>,
    pub content: Vec<u8>,
    pub extents: Vec<StatusExtent>,
}

/// An event of the client, with payloads joined to their replies.
#[derive(Clone, PartialEq, Debug)]
pub enum Heard {
    Greeting(u16),
    Option(u32, OptionReply),
    Export { size: u64, flags: u16 },
    Answer(Answer),
}

pub struct Client<S> {
    pub stream: Rc<S>,
    pub decoder: ClientDecoder,
    received: Vec<u8>,
    reads: RefCell<BTreeMap<u64, u32>>,
    cookie: u64,
}

impl<S: Stream> Client<S> {
    pub fn new(stream: Rc<S>) -> Client<S> {
        Client {
            stream,
            decoder: ClientDecoder::new(),
            received: Vec::new(),
            reads: RefCell::default(),
            cookie: 100,
        }
    }

    /// Greets.
    pub async fn hello(stream: Rc<S>) -> Client<S> {
        let mut client = Client::new(stream);
        assert_eq!(client.next().await, Some(Heard::Greeting(3)));
        let mut out = Vec::new();
        encode_client_flags(3, &mut out);
        client.send(&out).await.expect("connected");
        client
    }

    /// Greets and goes to the export.
    pub async fn go(stream: Rc<S>, export: &str, structured: bool) -> Client<S> {
        let mut client = Client::hello(stream).await;
        if structured {
            assert_eq!(client.option(ClientOption::StructuredReply).await, [OptionReply::Ack]);
            let query =
                MetaQuery { export: export.into(), queries: vec!["base:allocation".into()] };
            let replies = client.option(ClientOption::SetMetaContext(query)).await;
            assert_eq!(
                replies[0],
                OptionReply::MetaContext { id: 1, name: "base:allocation".into() }
            );
        }
        let query = InfoQuery { export: export.into(), wanted: vec![] };
        let replies = client.option(ClientOption::Go(query)).await;
        assert_eq!(replies.last(), Some(&OptionReply::Ack));
        client
    }

    pub async fn send(&self, bytes: &[u8]) -> Result<(), StreamError> {
        self.stream.send(Buf::from_bytes(bytes).into()).await
    }

    /// Sends an option and waits for the last reply to it.
    pub async fn option(&mut self, option: ClientOption) -> Vec<OptionReply> {
        let mut out = Vec::new();
        option.encode(&mut out);
        self.send(&out).await.expect("connected");
        self.option_replies(option.code()).await
    }

    pub async fn option_replies(&mut self, code: u32) -> Vec<OptionReply> {
        let mut replies = Vec::new();
        loop {
            match self.next().await {
                Some(Heard::Option(option, reply)) => {
                    assert_eq!(option, code);
                    let last = matches!(reply, OptionReply::Ack | OptionReply::Error { .. });
                    if code == opt::GO && reply == OptionReply::Ack {
                        self.decoder.start_transmission();
                    }
                    replies.push(reply);
                    if last {
                        return replies;
                    }
                }
                other => panic!("not a reply to an option: {other:?}"),
            }
        }
    }

    /// The bytes of a request; its answer is expected from now on.
    pub fn request(
        &mut self,
        command: Command,
        flags: u16,
        offset: u64,
        length: u32,
    ) -> (u64, Vec<u8>) {
        self.cookie += 1;
        let request = Request { flags, command, cookie: self.cookie, offset, length };
        let expected = if command == Command::Read { length } else { 0 };
        self.reads.borrow_mut().insert(request.cookie, expected);
        let mut out = Vec::new();
        request.encode(&mut out);
        (request.cookie, out)
    }

    /// Sends a request.
    pub async fn start(&mut self, command: Command, flags: u16, offset: u64, length: u32) -> u64 {
        let (cookie, out) = self.request(command, flags, offset, length);
        self.send(&out).await.expect("connected");
        cookie
    }

    /// Sends a write.
    pub async fn start_write(&mut self, flags: u16, offset: u64, content: &[u8]) -> u64 {
        let (cookie, mut out) = self.request(Command::Write, flags, offset, content.len() as u32);
        out.extend(content);
        self.send(&out).await.expect("connected");
        cookie
    }

    /// Sends a request and waits for its answer.
    pub async fn ask(&mut self, command: Command, flags: u16, offset: u64, length: u32) -> Answer {
        let cookie = self.start(command, flags, offset, length).await;
        let answer = self.answer().await;
        assert_eq!(answer.cookie, cookie);
        answer
    }

    /// The error that a request is answered with.
    pub async fn error(
        &mut self,
        command: Command,
        flags: u16,
        offset: u64,
        length: u32,
    ) -> Option<ErrorCode> {
        self.ask(command, flags, offset, length).await.error
    }

    /// Writes and waits for the answer.
    pub async fn write(&mut self, flags: u16, offset: u64, content: &[u8]) -> Option<ErrorCode> {
        let cookie = self.start_write(flags, offset, content).await;
        let answer = self.answer().await;
        assert_eq!(answer.cookie, cookie);
        answer.error
    }

    /// The next answer.
    pub async fn answer(&mut self) -> Answer {
        match self.next().await {
            Some(Heard::Answer(answer)) => answer,
            other => panic!("not an answer: {other:?}"),
        }
    }

    /// Leaves, and waits until the server has hung up.
    pub async fn leave(mut self) {
        let (_, out) = self.request(Command::Disconnect, 0, 0, 0);
        self.send(&out).await.expect("connected");
        assert_eq!(self.next().await, None);
    }

    /// The next event; `None` at the end of the stream.
    pub async fn next(&mut self) -> Option<Heard> {
        let mut answer: Option<Answer> = None;
        let mut wanted = 0;
        loop {
            let mut input = &self.received[..];
            let reads = &self.reads;
            let event = self
                .decoder
                .next(&mut input, |cookie| reads.borrow().get(&cookie).copied())
                .expect("the server speaks the protocol");
            let heard = match event {
                None => None,
                Some(ClientEvent::Greeting(flags)) => Some(Heard::Greeting(flags)),
                Some(ClientEvent::Option { option, reply }) => Some(Heard::Option(option, reply)),
                Some(ClientEvent::Export { size, flags }) => Some(Heard::Export { size, flags }),
                Some(ClientEvent::Reply(reply)) => {
                    let length = self.reads.borrow_mut().remove(&reply.cookie).expect("asked");
                    wanted = if reply.error.is_some() { 0 } else { length as usize };
                    let new =
                        Answer { cookie: reply.cookie, error: reply.error, ..Answer::default() };
                    answer = Some(new);
                    complete(&mut answer, wanted)
                }
                Some(ClientEvent::Chunk { cookie, done, chunk }) => {
                    let mut new =
                        answer.take().unwrap_or_else(|| Answer { cookie, ..Answer::default() });
                    assert_eq!(new.cookie, cookie, "chunks of one answer come together");
                    if done {
                        self.reads.borrow_mut().remove(&cookie).expect("asked");
                    }
                    match chunk {
                        Chunk::Data { length, .. } => wanted = length as usize,
                        Chunk::Error { error, .. } => new.error = Some(error),
                        Chunk::BlockStatus { extents, .. } => new.extents.extend(extents),
                        other => panic!("unexpected {other:?}"),
                    }
                    answer = Some(new);
                    if done { complete(&mut answer, wanted) } else { None }
                }
                Some(ClientEvent::Payload(bytes)) => {
                    answer.as_mut().expect("announced").content.extend(bytes);
                    complete(&mut answer, wanted)
                }
            };
            let none = input.is_empty() && heard.is_none();
            let used = self.received.len() - input.len();
            self.received.drain(..used);
            if heard.is_some() {
                return heard;
            }
            if none {
                let (buf, received) = self.stream.recv(Buf::zeroed(64 << 10)).await;
                let len = received.unwrap_or(0);
                if len == 0 {
                    assert!(answer.is_none(), "the end came in the middle of an answer");
                    return None;
                }
                self.received.extend(&buf.as_slice()[..len]);
            }
        }
    }
}

/// The answer once all of its content has come.
fn complete(answer: &mut Option<Answer>, wanted: usize) -> Option<Heard> {
    let all = answer.as_ref().is_some_and(|answer| answer.content.len() == wanted);
    if all { answer.take().map(Heard::Answer) } else { None }
}
