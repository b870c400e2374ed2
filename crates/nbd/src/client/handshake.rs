//! The negotiation, from the greeting to the first request.

use ubcache_env::{Buf, Protection, Stream};

use super::OpenFailure;
use super::export::Export;
use crate::proto::constants::{BASE_ALLOCATION, MAX_PAYLOAD_BYTES, handshake, info, rep};
use crate::proto::{
    ClientDecoder, ClientEvent, ClientOption, Info, InfoQuery, MetaQuery, OptionReply,
    encode_client_flags,
};

/// Memory for what the server sends meanwhile.
const RECEIVE_BYTES: usize = 16 << 10;

/// A connection whose negotiation has ended.
pub(super) struct Fresh<S> {
    pub stream: S,
    pub decoder: ClientDecoder,
    /// Bytes that came behind the negotiation.
    pub rest: Vec<u8>,
    pub export: Export,
}

/// Event of the negotiation, with what it borrows left out.
enum Heard {
    Greeting(u16),
    Option(OptionReply),
    Export { size: u64, flags: u16 },
}

struct Talk<S> {
    stream: S,
    decoder: ClientDecoder,
    received: Vec<u8>,
    buf: Option<Buf>,
}

/// Negotiates for the export of that name.
pub(super) async fn shake_hands<S: Stream>(stream: S, name: &str) -> Result<Fresh<S>, OpenFailure> {
    let mut talk = Talk {
        stream,
        decoder: ClientDecoder::new(),
        received: Vec::new(),
        buf: Some(Buf::zeroed(RECEIVE_BYTES)),
    };
    let no_zeroes = talk.greet().await?;
    if talk.stream.protection() == Protection::Required {
        talk.encrypt().await?;
    }
    let structured = match talk.ask(&ClientOption::StructuredReply).await? {
        OptionReply::Ack => true,
        OptionReply::Error { kind: rep::ERR_TLS_REQD, .. } => return Err(OpenFailure::TlsRequired),
        _ => false,
    };
    let allocation = if structured { talk.choose_context(name).await? } else { None };
    let export = talk.go(name, structured, allocation, no_zeroes).await?;
    let Talk { stream, decoder, received: rest, .. } = talk;
    Ok(Fresh { stream, decoder, rest, export })
}

impl<S: Stream> Talk<S> {
    /// Answers the greeting. Returns true if the padding of an old answer is left out.
    async fn greet(&mut self) -> Result<bool, OpenFailure> {
        let Heard::Greeting(found) = self.hear().await? else { return Err(self.unexpected()) };
        if found & handshake::FIXED_NEWSTYLE == 0 {
            return Err(OpenFailure::OldServer { found });
        }
        let no_zeroes = found & handshake::NO_ZEROES;
        let mut out = Vec::new();
        encode_client_flags(u32::from(handshake::FIXED_NEWSTYLE | no_zeroes), &mut out);
        self.send(&out).await?;
        Ok(no_zeroes != 0)
    }

    async fn encrypt(&mut self) -> Result<(), OpenFailure> {
        match self.ask(&ClientOption::StartTls).await? {
            OptionReply::Ack if self.received.is_empty() => {}
            OptionReply::Error { message, .. } => return Err(OpenFailure::NoTls(message)),
            _ => return Err(self.unexpected()),
        }
        self.stream.encrypt().await.map_err(OpenFailure::Connect)
    }

    /// Chooses `base:allocation`; returns its number, if the server has it.
    async fn choose_context(&mut self, name: &str) -> Result<Option<u32>, OpenFailure> {
        let query =
            MetaQuery { export: name.to_owned(), queries: vec![BASE_ALLOCATION.to_owned()] };
        self.send_option(&ClientOption::SetMetaContext(query)).await?;
        let mut number = None;
        loop {
            match self.reply().await? {
                OptionReply::MetaContext { id, name } if name == BASE_ALLOCATION => {
                    number = Some(id);
                }
                OptionReply::Ack => return Ok(number),
                OptionReply::Error { .. } => return Ok(None),
                _ => {}
            }
        }
    }

    async fn go(
        &mut self,
        name: &str,
        structured: bool,
        allocation: Option<u32>,
        no_zeroes: bool,
    ) -> Result<Export, OpenFailure> {
        let query = InfoQuery { export: name.to_owned(), wanted: vec![info::BLOCK_SIZE] };
        self.send_option(&ClientOption::Go(query)).await?;
        let (mut facts, mut block) = (None, None);
        loop {
            match self.reply().await? {
                OptionReply::Info(Info::Export { size, flags }) => facts = Some((size, flags)),
                OptionReply::Info(Info::BlockSize { minimum, preferred, maximum }) => {
                    block = Some((minimum, preferred, maximum));
                }
                OptionReply::Ack => {
                    self.decoder.start_transmission();
                    break;
                }
                OptionReply::Error { kind: rep::ERR_UNSUP, .. } => {
                    facts = Some(self.take_export(name, no_zeroes).await?);
                    break;
                }
                OptionReply::Error { kind: rep::ERR_TLS_REQD, .. } => {
                    return Err(OpenFailure::TlsRequired);
                }
                OptionReply::Error { kind, message } => {
                    let export = name.to_owned();
                    return Err(OpenFailure::Refused { export, kind, message });
                }
                _ => {}
            }
        }
        let (size, flags) = facts.ok_or_else(|| self.unexpected())?;
        let (minimum, preferred, maximum) = block.unwrap_or((1, 4096, MAX_PAYLOAD_BYTES));
        Ok(Export { size, flags, minimum, preferred, maximum, structured, allocation })
    }

    /// Takes the export in the old way, in which a server can't refuse.
    async fn take_export(
        &mut self,
        name: &str,
        no_zeroes: bool,
    ) -> Result<(u64, u16), OpenFailure> {
        self.decoder.expect_export(no_zeroes);
        self.send_option(&ClientOption::ExportName(name.to_owned())).await?;
        match self.hear().await {
            Ok(Heard::Export { size, flags }) => Ok((size, flags)),
            Ok(_) => Err(self.unexpected()),
            Err(OpenFailure::Ended(_)) => {
                Err(OpenFailure::Ended(": it may have no export of this name"))
            }
            Err(error) => Err(error),
        }
    }

    /// Sends an option with one reply, and waits for that.
    async fn ask(&mut self, option: &ClientOption) -> Result<OptionReply, OpenFailure> {
        self.send_option(option).await?;
        self.reply().await
    }

    async fn send_option(&self, option: &ClientOption) -> Result<(), OpenFailure> {
        let mut out = Vec::new();
        option.encode(&mut out);
        self.send(&out).await
    }

    async fn send(&self, bytes: &[u8]) -> Result<(), OpenFailure> {
        self.stream.send(Buf::from_bytes(bytes).into()).await.map_err(OpenFailure::Connect)
    }

    async fn reply(&mut self) -> Result<OptionReply, OpenFailure> {
        match self.hear().await? {
            Heard::Option(reply) => Ok(reply),
            _ => Err(self.unexpected()),
        }
    }

    fn unexpected(&self) -> OpenFailure {
        OpenFailure::Protocol(crate::ProtocolError::Malformed("order of the negotiation"))
    }

    async fn hear(&mut self) -> Result<Heard, OpenFailure> {
        loop {
            let mut input = &self.received[..];
            let event = self.decoder.next(&mut input, |_| None)?;
            let heard = match event {
                Some(ClientEvent::Greeting(flags)) => Some(Heard::Greeting(flags)),
                Some(ClientEvent::Option { reply, .. }) => Some(Heard::Option(reply)),
                Some(ClientEvent::Export { size, flags }) => Some(Heard::Export { size, flags }),
                Some(_) => return Err(self.unexpected()),
                None => None,
            };
            let used = self.received.len() - input.len();
            self.received.drain(..used);
            if let Some(heard) = heard {
                return Ok(heard);
            }
            let buf = self.buf.take().unwrap_or_else(|| Buf::zeroed(RECEIVE_BYTES));
            let (buf, received) = self.stream.recv(buf).await;
            match received.map_err(OpenFailure::Connect)? {
                0 => return Err(OpenFailure::Ended("")),
                len => self.received.extend_from_slice(&buf.as_slice()[..len]),
            }
            self.buf = Some(buf);
        }
    }
}
