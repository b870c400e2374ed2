//! The client's end of one NBD connection: negotiates, sends requests while others wait, hands out
//! the answers.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use ubcache_env::local::{Event, Lock, Notify};
use ubcache_env::{Buf, IoVec, Stream};
use ubcache_nbd::proto::constants::handshake;
use ubcache_nbd::proto::{
    Chunk, ClientDecoder, ClientEvent, ClientOption, Command, InfoQuery, MetaQuery, OptionReply,
    Request, StatusExtent, encode_client_flags,
};

use crate::stream::SimStream;

const RECEIVE_BYTES: usize = 16 << 10;

/// Answer to a request; the error is an errno value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// Done, with the content that was asked for, if any.
    Done(Vec<u8>),
    /// Status of parts, from the start of the range.
    Extents(Vec<StatusExtent>),
    /// It failed.
    Failed(u32),
}

/// The connection is gone.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Cut;

struct Waiting {
    /// Bytes that a successful simple reply brings.
    length: u32,
    answer: Option<Answer>,
}

/// See the module.
pub struct Connection {
    stream: Rc<SimStream>,
    waiting: RefCell<BTreeMap<u64, Waiting>>,
    /// Requests whose answers nobody has taken, in the order in which these came. They are taken
    /// in it: a client that saw a later one first would know less than the connection has told.
    answered: RefCell<VecDeque<u64>>,
    next_cookie: Cell<u64>,
    sending: Lock,
    cut: Cell<bool>,
    changed: Notify,
    /// The server has let go of the connection: no request of it is under way any more.
    pub served: Event,
}

/// An answer whose content is still coming.
struct Coming {
    cookie: u64,
    wanted: usize,
    content: Vec<u8>,
}

impl Connection {
    /// A connection that has to be negotiated yet.
    pub fn new(stream: Rc<SimStream>) -> Connection {
        Connection {
            stream,
            waiting: RefCell::default(),
            answered: RefCell::default(),
            next_cookie: Cell::new(1),
            sending: Lock::default(),
            cut: Cell::new(false),
            changed: Notify::default(),
            served: Event::default(),
        }
    }

    /// Returns true if the connection can't be used any more.
    pub fn is_cut(&self) -> bool {
        self.cut.get()
    }

    /// The network fails.
    pub fn disconnect(&self) {
        self.stream.disconnect();
    }

    async fn send(&self, parts: IoVec) -> Result<(), Cut> {
        let _one = self.sending.lock().await;
        self.stream.send(parts).await.map_err(|_| Cut)
    }

    /// Negotiates, from the greeting to the first request.
    ///
    /// # Panics
    /// If the server does not speak the protocol, or refuses the export.
    pub async fn negotiate(&self, export: &str, structured: bool) -> Result<ClientDecoder, Cut> {
        let mut decoder = ClientDecoder::new();
        let flags = handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES;
        let Heard::Greeting(offered) = self.hear(&mut decoder).await? else {
            panic!("not a greeting")
        };
        assert_eq!(offered & flags, flags, "the server speaks fixed newstyle");
        let mut out = Vec::new();
        encode_client_flags(u32::from(flags), &mut out);
        self.send(Buf::from_bytes(&out).into()).await?;
        if !structured {
            // The old way in, with replies as they used to be.
            decoder.expect_export(true);
            self.say(ClientOption::ExportName(export.to_owned())).await?;
            assert!(matches!(self.hear(&mut decoder).await?, Heard::Export), "not an export");
            return Ok(decoder);
        }
        self.ask_option(&mut decoder, ClientOption::StructuredReply).await?;
        let query =
            MetaQuery { export: export.to_owned(), queries: vec!["base:allocation".to_owned()] };
        self.ask_option(&mut decoder, ClientOption::SetMetaContext(query)).await?;
        let query = InfoQuery { export: export.to_owned(), wanted: Vec::new() };
        self.ask_option(&mut decoder, ClientOption::Go(query)).await?;
        decoder.start_transmission();
        Ok(decoder)
    }

    async fn say(&self, option: ClientOption) -> Result<(), Cut> {
        let mut out = Vec::new();
        option.encode(&mut out);
        self.send(Buf::from_bytes(&out).into()).await
    }

    async fn ask_option(
        &self,
        decoder: &mut ClientDecoder,
        option: ClientOption,
    ) -> Result<(), Cut> {
        let code = option.code();
        self.say(option).await?;
        loop {
            match self.hear(decoder).await? {
                Heard::Option(of, OptionReply::Ack) if of == code => return Ok(()),
                Heard::Option(of, reply) if of == code => {
                    assert!(
                        !matches!(reply, OptionReply::Error { .. }),
                        "option {code}: {reply:?}"
                    );
                }
                _ => panic!("not a reply to option {code}"),
            }
        }
    }

    /// The next thing that is said during the negotiation, byte by byte: nothing that comes after
    /// it is taken.
    async fn hear(&self, decoder: &mut ClientDecoder) -> Result<Heard, Cut> {
        loop {
            let (buf, received) = self.stream.recv(Buf::zeroed(1)).await;
            let Ok(1..) = received else { return Err(Cut) };
            let mut input = buf.as_slice();
            match decoder.next(&mut input, |_| None).expect("the server speaks the protocol") {
                None => {}
                Some(ClientEvent::Greeting(flags)) => return Ok(Heard::Greeting(flags)),
                Some(ClientEvent::Option { option, reply }) => {
                    return Ok(Heard::Option(option, reply));
                }
                Some(ClientEvent::Export { .. }) => return Ok(Heard::Export),
                Some(other) => panic!("not a part of the negotiation: {other:?}"),
            }
        }
    }

    /// Receives answers until the end of the connection.
    ///
    /// # Panics
    /// If the server does not speak the protocol.
    pub async fn receive(&self, mut decoder: ClientDecoder) {
        let mut coming = None;
        loop {
            let (buf, received) = self.stream.recv(Buf::zeroed(RECEIVE_BYTES)).await;
            let Ok(count @ 1..) = received else { break };
            let mut input = &buf.as_slice()[..count];
            let read_length =
                |cookie| self.waiting.borrow().get(&cookie).map(|waiting| waiting.length);
            while let Some(event) =
                decoder.next(&mut input, read_length).expect("the server speaks the protocol")
            {
                self.take(event, &mut coming);
            }
        }
        self.cut.set(true);
        self.changed.notify_all();
    }

    fn take(&self, event: ClientEvent<'_>, coming: &mut Option<Coming>) {
        match event {
            ClientEvent::Reply(reply) => match reply.error {
                Some(error) => self.answer(reply.cookie, Answer::Failed(error.to_wire())),
                None => {
                    let wanted = self.waiting.borrow()[&reply.cookie].length as usize;
                    self.expect(coming, reply.cookie, wanted);
                }
            },
            ClientEvent::Chunk { cookie, done, chunk } => {
                assert!(done, "this server answers with one chunk");
                match chunk {
                    Chunk::Data { length, .. } => self.expect(coming, cookie, length as usize),
                    Chunk::None => self.answer(cookie, Answer::Done(Vec::new())),
                    Chunk::Error { error, .. } => {
                        self.answer(cookie, Answer::Failed(error.to_wire()))
                    }
                    Chunk::BlockStatus { extents, .. } => {
                        self.answer(cookie, Answer::Extents(extents))
                    }
                    other => panic!("unexpected {other:?}"),
                }
            }
            ClientEvent::Payload(bytes) => {
                let current = coming.as_mut().expect("content was announced");
                current.content.extend(bytes);
                if current.content.len() == current.wanted {
                    let Coming { cookie, content, .. } = coming.take().expect("just seen");
                    self.answer(cookie, Answer::Done(content));
                }
            }
            other => panic!("not an answer: {other:?}"),
        }
    }

    fn expect(&self, coming: &mut Option<Coming>, cookie: u64, wanted: usize) {
        if wanted == 0 {
            self.answer(cookie, Answer::Done(Vec::new()));
        } else {
            *coming = Some(Coming { cookie, wanted, content: Vec::with_capacity(wanted) });
        }
    }

    fn answer(&self, cookie: u64, answer: Answer) {
        let mut waiting = self.waiting.borrow_mut();
        let request = waiting.get_mut(&cookie).expect("an answer to a request that was made");
        assert!(request.answer.is_none(), "one answer to each request");
        request.answer = Some(answer);
        drop(waiting);
        self.answered.borrow_mut().push_back(cookie);
        self.changed.notify_all();
    }

    /// Sends a request and waits for its answer.
    pub async fn request(
        &self,
        command: Command,
        flags: u16,
        (offset, length): (u64, u32),
        payload: IoVec,
    ) -> Result<Answer, Cut> {
        let cookie = self.next_cookie.get();
        self.next_cookie.set(cookie + 1);
        let expected = if command == Command::Read { length } else { 0 };
        self.waiting.borrow_mut().insert(cookie, Waiting { length: expected, answer: None });
        let mut header = Vec::new();
        Request { flags, command, cookie, offset, length }.encode(&mut header);
        let mut parts = IoVec::from(Buf::from_bytes(&header));
        parts.append(payload);
        self.send(parts).await?;
        loop {
            let changed = self.changed.notified();
            if self.answered.borrow().front() == Some(&cookie) {
                self.answered.borrow_mut().pop_front();
                let waiting = self.waiting.borrow_mut().remove(&cookie);
                self.changed.notify_all();
                return Ok(waiting.and_then(|it| it.answer).expect("it is answered"));
            }
            if self.cut.get() && !self.answered.borrow().contains(&cookie) {
                return Err(Cut);
            }
            changed.await;
        }
    }

    /// Sends a disconnect.
    pub async fn leave(&self) {
        let mut header = Vec::new();
        let cookie = self.next_cookie.get();
        Request { flags: 0, command: Command::Disconnect, cookie, offset: 0, length: 0 }
            .encode(&mut header);
        // It may be cut just now; then the server finds out in another way.
        let _ = self.send(Buf::from_bytes(&header).into()).await;
    }
}

enum Heard {
    Greeting(u16),
    Option(u32, OptionReply),
    Export,
}
