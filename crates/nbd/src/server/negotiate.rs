//! Agrees on an export and on the form of replies (*Newstyle negotiation*).

use std::rc::Rc;

use ubcache_env::{Buf, Protection, Stream, Volume, VolumeInfo};

use super::contexts::{Context, Contexts};
use super::handover::{self, Parked, Refused};
use super::input::Input;
use super::pace::Pace;
use super::shares::Shared;
use super::{ServeError, ServerOptions};
use crate::exports::{Exports, Found};
use crate::proto::constants::{MAX_PAYLOAD_BYTES, handshake, info, opt, rep, transmission};
use crate::proto::{
    ClientOption, Info, InfoQuery, MetaQuery, OptionReply, OptionRequest, ProtocolError,
    ServerDecoder, ServerEvent, encode_export_reply, encode_greeting,
};
use crate::stats::ConnectionStats;

/// Options that one client may send.
const MAX_OPTIONS: u32 = 1024;
/// Replies are sent at the latest when they are this long.
const MAX_PENDING_BYTES: usize = 64 << 10;

/// Result of the negotiation.
#[derive(Debug)]
pub(super) struct Session<V> {
    pub(super) name: String,
    pub(super) volume: Rc<V>,
    pub(super) info: VolumeInfo,
    /// The service that the connections to the volume share.
    pub(super) service: Rc<Shared>,
    /// Limits of all of them together.
    pub(super) pace: Option<Rc<Pace>>,
    /// Structured replies.
    pub(super) structured: bool,
    /// The contexts of `BLOCK_STATUS`.
    pub(super) contexts: Contexts,
    /// The refused write whose payload comes first.
    pub(super) refused: Option<Refused>,
}

impl<V> Session<V> {
    /// The session, for another server.
    pub(super) fn parked(&self) -> Parked {
        Parked {
            export: self.name.clone(),
            structured: self.structured,
            contexts: handover::names(self.contexts),
            ..Parked::default()
        }
    }
}

/// The session that another server has left.
pub(super) fn session_of<V: Volume>(
    parked: Parked,
    exports: &Exports<V>,
) -> Result<Session<V>, ServeError> {
    let Some(found) = exports.find(&parked.export) else {
        return Err(ServeError::UnknownExport(parked.export));
    };
    Ok(Session {
        name: found.name,
        info: found.volume.info(),
        volume: found.volume,
        service: found.service,
        pace: found.pace,
        structured: parked.structured,
        contexts: handover::contexts(&parked.contexts),
        refused: parked.refused,
    })
}

/// The step after an option.
enum Next<V> {
    Option,
    Encryption,
    Transmission(Found<V>),
    Goodbye,
}

struct Negotiation<'a, V> {
    exports: &'a Exports<V>,
    protection: Protection,
    /// An option was refused because TLS comes first.
    refused_for_tls: bool,
    out: Vec<u8>,
    no_zeroes: bool,
    structured: bool,
    /// Contexts, and the volume that they were chosen for.
    chosen: Option<(Rc<V>, Contexts)>,
    options: u32,
}

/// Negotiates. `None`: the client has left.
pub(super) async fn negotiate<S: Stream, V: Volume>(
    input: &mut Input<S>,
    decoder: &mut ServerDecoder,
    exports: &Exports<V>,
    options: &ServerOptions,
) -> Result<Option<Session<V>>, ServeError> {
    let mut negotiation = Negotiation {
        exports,
        protection: input.stream().protection(),
        refused_for_tls: false,
        out: Vec::new(),
        no_zeroes: false,
        structured: false,
        chosen: None,
        options: 0,
    };
    encode_greeting(handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES, &mut negotiation.out);
    loop {
        let mut bytes = input.available();
        let event = decoder.next(&mut bytes)?;
        let left = bytes.len();
        let next = match event {
            Some(ServerEvent::ClientFlags(flags)) => {
                negotiation.no_zeroes = flags & handshake::NO_ZEROES != 0;
                Next::Option
            }
            Some(ServerEvent::Option(option)) => negotiation.option(option)?,
            Some(ServerEvent::Request(_) | ServerEvent::Payload(_)) => {
                unreachable!("requests come after the negotiation")
            }
            None => {
                input.consume_to(0);
                send(input.stream(), &mut negotiation.out, &options.stats).await?;
                if input.refill().await? {
                    continue;
                }
                return if decoder.is_mid_message() {
                    Err(ServeError::Disconnected)
                } else {
                    negotiation.left()
                };
            }
        };
        input.consume_to(left);
        match next {
            Next::Option if negotiation.out.len() < MAX_PENDING_BYTES => {}
            Next::Option => send(input.stream(), &mut negotiation.out, &options.stats).await?,
            Next::Encryption => {
                // None of it came inside TLS: it must not be taken for what comes later.
                if left > 0 {
                    return Err(ProtocolError::BytesBeforeTls.into());
                }
                send(input.stream(), &mut negotiation.out, &options.stats).await?;
                input.stream().encrypt().await?;
                negotiation.begin_again();
            }
            Next::Transmission(found) => {
                send(input.stream(), &mut negotiation.out, &options.stats).await?;
                decoder.start_transmission();
                return Ok(Some(negotiation.session(found)));
            }
            Next::Goodbye => {
                // The client may be gone already, which is all right.
                let _ = send(input.stream(), &mut negotiation.out, &options.stats).await;
                return negotiation.left();
            }
        }
    }
}

async fn send<S: Stream>(
    stream: &S,
    out: &mut Vec<u8>,
    stats: &ConnectionStats,
) -> Result<(), ServeError> {
    if !out.is_empty() {
        stream.send(Buf::from_bytes(out).into()).await?;
        stats.update(|counts| counts.sent_bytes += out.len() as u64);
        out.clear();
    }
    Ok(())
}

impl<V: Volume> Negotiation<'_, V> {
    /// Answers one option.
    fn option(&mut self, option: OptionRequest) -> Result<Next<V>, ServeError> {
        self.options += 1;
        if self.options > MAX_OPTIONS {
            return Err(ProtocolError::TooManyOptions(MAX_OPTIONS).into());
        }
        let code = option.code;
        if self.protection == Protection::Required {
            return self.option_before_tls(option);
        }
        let asked = match option.body {
            Ok(asked) => asked,
            Err(fault) => return Ok(self.refuse(code, fault.reply())),
        };
        match asked {
            ClientOption::ExportName(name) => return self.export_name(name),
            ClientOption::Abort => {
                self.reply(code, &OptionReply::Ack);
                return Ok(Next::Goodbye);
            }
            ClientOption::List => {
                for (name, description) in self.exports.list() {
                    self.reply(code, &OptionReply::Server { name, description });
                }
                self.reply(code, &OptionReply::Ack);
            }
            ClientOption::Info(query) => {
                self.describe(code, &query);
            }
            ClientOption::Go(query) => {
                if let Some(found) = self.describe(code, &query) {
                    return Ok(Next::Transmission(found));
                }
            }
            ClientOption::StructuredReply => {
                self.structured = true;
                self.reply(code, &OptionReply::Ack);
            }
            ClientOption::ListMetaContext(query) => self.meta_context(code, &query, false),
            ClientOption::SetMetaContext(query) => self.meta_context(code, &query, true),
            ClientOption::StartTls => {
                let (kind, message) = match self.protection {
                    Protection::Encrypted => (rep::ERR_INVALID, "TLS is in use already"),
                    _ => (rep::ERR_UNSUP, "there is no TLS on this socket"),
                };
                self.reply(code, &OptionReply::error(kind, message));
            }
            ClientOption::Unknown(_) => {
                self.reply(code, &OptionReply::error(rep::ERR_UNSUP, "unknown option"));
            }
        }
        Ok(Next::Option)
    }

    /// Answers one option where TLS comes first (*TLS versions*, FORCEDTLS): only it and the end
    /// can be had.
    fn option_before_tls(&mut self, option: OptionRequest) -> Result<Next<V>, ServeError> {
        let code = option.code;
        match option.body {
            Ok(ClientOption::StartTls) => {
                self.reply(code, &OptionReply::Ack);
                return Ok(Next::Encryption);
            }
            Ok(ClientOption::Abort) => {
                self.reply(code, &OptionReply::Ack);
                return Ok(Next::Goodbye);
            }
            // The only way to refuse it is to close the connection.
            Ok(ClientOption::ExportName(_)) => return Err(ServeError::TlsRequired),
            Err(fault) if code == opt::STARTTLS => return Ok(self.refuse(code, fault.reply())),
            _ => {}
        }
        self.refused_for_tls = true;
        let message = "this server requires TLS (NBD_OPT_STARTTLS)";
        Ok(self.refuse(code, OptionReply::error(rep::ERR_TLS_REQD, message)))
    }

    /// TLS has begun. What was agreed on in the clear may not be what the client asked for.
    fn begin_again(&mut self) {
        self.protection = Protection::Encrypted;
        self.refused_for_tls = false;
        self.structured = false;
        self.chosen = None;
    }

    /// The client has left without an export.
    fn left(&self) -> Result<Option<Session<V>>, ServeError> {
        if self.refused_for_tls { Err(ServeError::TlsRequired) } else { Ok(None) }
    }

    fn reply(&mut self, option: u32, reply: &OptionReply) {
        reply.encode(option, &mut self.out);
    }

    fn refuse(&mut self, option: u32, reply: OptionReply) -> Next<V> {
        self.reply(option, &reply);
        Next::Option
    }

    fn find(&mut self, option: u32, name: &str) -> Option<Found<V>> {
        let found = self.exports.find(name);
        if found.is_none() {
            let message = if name.is_empty() {
                "there is no default export"
            } else {
                "there is no such export"
            };
            self.reply(option, &OptionReply::error(rep::ERR_UNKNOWN, message));
        }
        found
    }

    /// `NBD_OPT_EXPORT_NAME`: the only way to refuse it is to close the connection.
    fn export_name(&mut self, name: String) -> Result<Next<V>, ServeError> {
        let Some(found) = self.exports.find(&name) else {
            return Err(ServeError::UnknownExport(name));
        };
        let info = found.volume.info();
        encode_export_reply(size_bytes(&info), self.flags(&info), self.no_zeroes, &mut self.out);
        Ok(Next::Transmission(found))
    }

    /// `NBD_OPT_INFO` and `NBD_OPT_GO`. Size and block sizes are always sent, also to clients that
    /// did not ask.
    fn describe(&mut self, option: u32, query: &InfoQuery) -> Option<Found<V>> {
        let found = self.find(option, &query.export)?;
        let info = found.volume.info();
        let export = Info::Export { size: size_bytes(&info), flags: self.flags(&info) };
        self.reply(option, &OptionReply::Info(export));
        self.reply(option, &OptionReply::Info(block_sizes(&info)));
        if query.wanted.contains(&info::NAME) {
            self.reply(option, &OptionReply::Info(Info::Name(found.name.clone())));
        }
        if query.wanted.contains(&info::DESCRIPTION) && !found.description.is_empty() {
            self.reply(option, &OptionReply::Info(Info::Description(found.description.clone())));
        }
        self.reply(option, &OptionReply::Ack);
        Some(found)
    }

    /// `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT`.
    fn meta_context(&mut self, option: u32, query: &MetaQuery, set: bool) {
        if set {
            self.chosen = None;
        }
        if !self.structured {
            let message = "metadata contexts need structured replies";
            return self.reply(option, &OptionReply::error(rep::ERR_INVALID, message));
        }
        let Some(found) = self.find(option, &query.export) else { return };
        let mut contexts = Contexts::default();
        for context in Context::ALL {
            let name = context.name();
            let named = query.queries.iter().any(|query| query == name);
            let listed = !set
                && (query.queries.is_empty()
                    || query.queries.iter().any(|query| context.is_listed_by(query)));
            if named || listed {
                // The number means something only when the context is chosen.
                let id = if set { context.id() } else { 0 };
                self.reply(option, &OptionReply::MetaContext { id, name: name.to_owned() });
                contexts.choose(context);
            }
        }
        if set {
            self.chosen = Some((found.volume, contexts));
        }
        self.reply(option, &OptionReply::Ack);
    }

    fn flags(&self, info: &VolumeInfo) -> u16 {
        let mut flags = transmission::HAS_FLAGS
            | transmission::SEND_FLUSH
            | transmission::SEND_FUA
            | transmission::CAN_MULTI_CONN
            | transmission::SEND_CACHE;
        if self.structured {
            flags |= transmission::SEND_DF;
        }
        flags
            | if info.read_only {
                transmission::READ_ONLY
            } else {
                transmission::SEND_TRIM
                    | transmission::SEND_WRITE_ZEROES
                    | transmission::SEND_FAST_ZERO
            }
    }

    fn session(self, found: Found<V>) -> Session<V> {
        let info = found.volume.info();
        let chosen = self.chosen.filter(|(volume, _)| Rc::ptr_eq(volume, &found.volume));
        let contexts = chosen.map(|(_, contexts)| contexts).unwrap_or_default();
        Session {
            name: found.name,
            volume: found.volume,
            info,
            service: found.service,
            pace: found.pace,
            structured: self.structured,
            contexts,
            refused: None,
        }
    }
}

/// Size that the client sees: whole blocks only, because requests are whole blocks.
pub(super) fn size_bytes(info: &VolumeInfo) -> u64 {
    let bytes = info.sectors.saturating_mul(512);
    bytes - bytes % u64::from(info.block_bytes.max(512))
}

/// *Block size constraints*: powers of two, the maximum a multiple of the minimum. Any request is
/// served; one that is a multiple of the preferred size costs least.
fn block_sizes(info: &VolumeInfo) -> Info {
    let block = info.block_bytes.max(512);
    let preferred = info.preferred_bytes.clamp(block, MAX_PAYLOAD_BYTES).next_power_of_two();
    Info::BlockSize { minimum: 1, preferred, maximum: MAX_PAYLOAD_BYTES }
}
