//! Options and the replies to them (*Option types*, *Option reply types*).

use super::constants::{IHAVEOPT, OPTION_REPLY_MAGIC, info, opt, rep};
use super::wire::{Put as _, Reader, length, string};

/// Reasons for an error reply to an option.
#[derive(Copy, Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OptionFault {
    /// The data has not the form that the option prescribes.
    #[error("{0}")]
    Invalid(&'static str),
    /// The data is too long.
    #[error("{0}")]
    TooBig(&'static str),
}

impl OptionFault {
    /// The error reply for the client.
    pub fn reply(&self) -> OptionReply {
        let (kind, message) = match self {
            OptionFault::Invalid(message) => (rep::ERR_INVALID, message),
            OptionFault::TooBig(message) => (rep::ERR_TOO_BIG, message),
        };
        OptionReply::error(kind, message)
    }
}

/// The data of `NBD_OPT_INFO` and `NBD_OPT_GO`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct InfoQuery {
    /// Name of the export; empty for the default one.
    pub export: String,
    /// The pieces of information asked for, see [`info`].
    pub wanted: Vec<u16>,
}

/// The data of `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MetaQuery {
    /// Name of the export; empty for the default one.
    pub export: String,
    /// Names of contexts, or beginnings of such names that end in a colon.
    pub queries: Vec<String>,
}

/// An option of the client during the negotiation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ClientOption {
    /// `NBD_OPT_EXPORT_NAME`: use this export; the server can't refuse.
    ExportName(String),
    /// `NBD_OPT_ABORT`
    Abort,
    /// `NBD_OPT_LIST`
    List,
    /// `NBD_OPT_STARTTLS`
    StartTls,
    /// `NBD_OPT_INFO`
    Info(InfoQuery),
    /// `NBD_OPT_GO`
    Go(InfoQuery),
    /// `NBD_OPT_STRUCTURED_REPLY`
    StructuredReply,
    /// `NBD_OPT_LIST_META_CONTEXT`
    ListMetaContext(MetaQuery),
    /// `NBD_OPT_SET_META_CONTEXT`
    SetMetaContext(MetaQuery),
    /// An unknown option; its data was dropped.
    Unknown(u32),
}

impl ClientOption {
    /// The number of the option.
    pub fn code(&self) -> u32 {
        match self {
            ClientOption::ExportName(_) => opt::EXPORT_NAME,
            ClientOption::Abort => opt::ABORT,
            ClientOption::List => opt::LIST,
            ClientOption::StartTls => opt::STARTTLS,
            ClientOption::Info(_) => opt::INFO,
            ClientOption::Go(_) => opt::GO,
            ClientOption::StructuredReply => opt::STRUCTURED_REPLY,
            ClientOption::ListMetaContext(_) => opt::LIST_META_CONTEXT,
            ClientOption::SetMetaContext(_) => opt::SET_META_CONTEXT,
            ClientOption::Unknown(code) => *code,
        }
    }

    /// Appends the option with its header.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64(IHAVEOPT);
        out.put_u32(self.code());
        let start = begin_data(out);
        match self {
            ClientOption::ExportName(name) => out.put(name.as_bytes()),
            ClientOption::Info(query) | ClientOption::Go(query) => {
                out.put_counted(&query.export);
                out.put_u16(
                    u16::try_from(query.wanted.len()).expect("there are few kinds of information"),
                );
                for wanted in &query.wanted {
                    out.put_u16(*wanted);
                }
            }
            ClientOption::ListMetaContext(query) | ClientOption::SetMetaContext(query) => {
                out.put_counted(&query.export);
                out.put_u32(length(query.queries.len()));
                for name in &query.queries {
                    out.put_counted(name);
                }
            }
            ClientOption::Abort
            | ClientOption::List
            | ClientOption::StartTls
            | ClientOption::StructuredReply
            | ClientOption::Unknown(_) => {}
        }
        end_data(out, start);
    }

    /// Parses the data of option `code`.
    pub fn decode(code: u32, data: &[u8]) -> Result<ClientOption, OptionFault> {
        let without_data = |option| {
            if data.is_empty() {
                Ok(option)
            } else {
                Err(OptionFault::Invalid("the option takes no data"))
            }
        };
        match code {
            opt::EXPORT_NAME => Ok(ClientOption::ExportName(string(data)?)),
            // A client that leaves is not held up for the form of its goodbye.
            opt::ABORT => Ok(ClientOption::Abort),
            opt::LIST => without_data(ClientOption::List),
            opt::STARTTLS => without_data(ClientOption::StartTls),
            opt::INFO => Ok(ClientOption::Info(decode_info_query(data)?)),
            opt::GO => Ok(ClientOption::Go(decode_info_query(data)?)),
            opt::STRUCTURED_REPLY => without_data(ClientOption::StructuredReply),
            opt::LIST_META_CONTEXT => Ok(ClientOption::ListMetaContext(decode_meta_query(data)?)),
            opt::SET_META_CONTEXT => Ok(ClientOption::SetMetaContext(decode_meta_query(data)?)),
            _ => Ok(ClientOption::Unknown(code)),
        }
    }
}

fn decode_info_query(data: &[u8]) -> Result<InfoQuery, OptionFault> {
    const SHORT: OptionFault =
        OptionFault::Invalid("the list of information requests is cut short");
    let mut reader = Reader::new(data);
    let export = reader.counted_string()?;
    let count = reader.u16().ok_or(SHORT)?;
    let wanted = (0..count).map(|_| reader.u16()).collect::<Option<Vec<u16>>>().ok_or(SHORT)?;
    ended(&reader)?;
    Ok(InfoQuery { export, wanted })
}

fn decode_meta_query(data: &[u8]) -> Result<MetaQuery, OptionFault> {
    let mut reader = Reader::new(data);
    let export = reader.counted_string()?;
    let count = reader.u32().ok_or(OptionFault::Invalid("too short for the number of queries"))?;
    let mut queries = Vec::new();
    for _ in 0..count {
        queries.push(reader.counted_string()?);
    }
    ended(&reader)?;
    Ok(MetaQuery { export, queries })
}

fn ended(reader: &Reader<'_>) -> Result<(), OptionFault> {
    if reader.is_empty() {
        Ok(())
    } else {
        Err(OptionFault::Invalid("there is data after the end of the option"))
    }
}

/// A piece of information about an export (`NBD_REP_INFO`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Info {
    /// `NBD_INFO_EXPORT`
    Export {
        /// Size in bytes.
        size: u64,
        /// See [`super::constants::transmission`].
        flags: u16,
    },
    /// `NBD_INFO_NAME`: the canonical name.
    Name(String),
    /// `NBD_INFO_DESCRIPTION`
    Description(String),
    /// `NBD_INFO_BLOCK_SIZE`, all in bytes.
    BlockSize {
        /// Every request is a multiple of it.
        minimum: u32,
        /// Smaller requests cost more than they should.
        preferred: u32,
        /// No payload is longer.
        maximum: u32,
    },
    /// An unknown piece of information.
    Unknown(u16),
}

/// A server's reply to an option.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OptionReply {
    /// `NBD_REP_ACK`
    Ack,
    /// `NBD_REP_SERVER`: one export.
    Server {
        /// Its name.
        name: String,
        /// Description for a human reader; may be empty.
        description: String,
    },
    /// `NBD_REP_INFO`
    Info(Info),
    /// `NBD_REP_META_CONTEXT`
    MetaContext {
        /// The number that stands for it in block status chunks.
        id: u32,
        /// Its name.
        name: String,
    },
    /// One of `NBD_REP_ERR_…`
    Error {
        /// Number of the error, see [`rep`].
        kind: u32,
        /// Reason, for a human reader.
        message: String,
    },
    /// An unknown reply that is no error.
    Unknown(u32),
}

impl OptionReply {
    /// An error reply.
    pub fn error(kind: u32, message: &str) -> OptionReply {
        OptionReply::Error { kind, message: message.to_owned() }
    }

    /// Appends the reply to `option` with its header.
    pub fn encode(&self, option: u32, out: &mut Vec<u8>) {
        out.put_u64(OPTION_REPLY_MAGIC);
        out.put_u32(option);
        out.put_u32(match self {
            OptionReply::Ack => rep::ACK,
            OptionReply::Server { .. } => rep::SERVER,
            OptionReply::Info(_) => rep::INFO,
            OptionReply::MetaContext { .. } => rep::META_CONTEXT,
            OptionReply::Error { kind, .. } | OptionReply::Unknown(kind) => *kind,
        });
        let start = begin_data(out);
        match self {
            OptionReply::Ack | OptionReply::Unknown(_) => {}
            OptionReply::Server { name, description } => {
                out.put_counted(name);
                out.put(description.as_bytes());
            }
            OptionReply::Info(info) => encode_info(info, out),
            OptionReply::MetaContext { id, name } => {
                out.put_u32(*id);
                out.put(name.as_bytes());
            }
            OptionReply::Error { message, .. } => out.put(message.as_bytes()),
        }
        end_data(out, start);
    }

    /// Parses the data of a reply of type `kind`; `None` if it is malformed.
    pub fn decode(kind: u32, data: &[u8]) -> Option<OptionReply> {
        let mut reader = Reader::new(data);
        let reply = match kind {
            rep::ACK => OptionReply::Ack,
            rep::SERVER => {
                let name = reader.counted_string().ok()?;
                OptionReply::Server { name, description: string(reader.rest()).ok()? }
            }
            rep::INFO => OptionReply::Info(decode_info(&mut reader)?),
            rep::META_CONTEXT => {
                let id = reader.u32()?;
                OptionReply::MetaContext { id, name: string(reader.rest()).ok()? }
            }
            kind if kind & rep::ERROR_BIT != 0 => {
                OptionReply::Error { kind, message: string(reader.rest()).ok()? }
            }
            _ => {
                reader.rest();
                OptionReply::Unknown(kind)
            }
        };
        reader.is_empty().then_some(reply)
    }
}

fn encode_info(info: &Info, out: &mut Vec<u8>) {
    match info {
        Info::Export { size, flags } => {
            out.put_u16(info::EXPORT);
            out.put_u64(*size);
            out.put_u16(*flags);
        }
        Info::Name(name) => {
            out.put_u16(info::NAME);
            out.put(name.as_bytes());
        }
        Info::Description(text) => {
            out.put_u16(info::DESCRIPTION);
            out.put(text.as_bytes());
        }
        Info::BlockSize { minimum, preferred, maximum } => {
            out.put_u16(info::BLOCK_SIZE);
            out.put_u32(*minimum);
            out.put_u32(*preferred);
            out.put_u32(*maximum);
        }
        Info::Unknown(kind) => out.put_u16(*kind),
    }
}

fn decode_info(reader: &mut Reader<'_>) -> Option<Info> {
    Some(match reader.u16()? {
        info::EXPORT => Info::Export { size: reader.u64()?, flags: reader.u16()? },
        info::NAME => Info::Name(string(reader.rest()).ok()?),
        info::DESCRIPTION => Info::Description(string(reader.rest()).ok()?),
        info::BLOCK_SIZE => Info::BlockSize {
            minimum: reader.u32()?,
            preferred: reader.u32()?,
            maximum: reader.u32()?,
        },
        kind => {
            reader.rest();
            Info::Unknown(kind)
        }
    })
}

/// Leaves room for the length of the data that follows.
fn begin_data(out: &mut Vec<u8>) -> usize {
    out.put_u32(0);
    out.len()
}

fn end_data(out: &mut [u8], start: usize) {
    let len = length(out.len() - start);
    out[start - 4..start].copy_from_slice(&len.to_be_bytes());
}
