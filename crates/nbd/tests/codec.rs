//! The codec: what is written is read back, however the bytes are cut; no bytes do harm.

use proptest::prelude::*;
use ubcache_nbd::proto::constants::{
    MAX_OPTION_BYTES, MAX_PAYLOAD_BYTES, MAX_STATUS_BYTES, chunk, opt, rep,
};
use ubcache_nbd::proto::{
    Chunk, ClientDecoder, ClientEvent, ClientOption, Command, ErrorCode, Info, InfoQuery,
    MetaQuery, OptionFault, OptionReply, OptionRequest, ProtocolError, Request, ServerDecoder,
    ServerEvent, SimpleReply, StatusExtent, encode_client_flags, encode_export_reply,
    encode_greeting,
};

/// An event without borrowed bytes; payload pieces are joined.
#[derive(Clone, PartialEq, Debug)]
enum Heard {
    Flags(u16),
    Option(OptionRequest),
    Request(Request),
    Greeting(u16),
    Reply(u32, OptionReply),
    Export(u64, u16),
    Simple(SimpleReply),
    Chunk(u64, bool, Chunk),
    Payload(Vec<u8>),
    Failed(ProtocolError),
}

fn push(heard: &mut Vec<Heard>, event: Heard) {
    match (heard.last_mut(), event) {
        (Some(Heard::Payload(payload)), Heard::Payload(more)) => payload.extend(more),
        (_, event) => heard.push(event),
    }
}

/// The bytes in pieces that end at the cuts.
fn pieces<'a>(bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
    cuts.push(bytes.len());
    cuts.sort_unstable();
    let mut at = 0;
    cuts.iter().map(|cut| &bytes[std::mem::replace(&mut at, *cut)..*cut]).collect()
}

/// Events that a server decodes. Transmission starts after the first `GO` or `EXPORT_NAME`.
fn server_hears(pieces: &[&[u8]]) -> Vec<Heard> {
    let mut decoder = ServerDecoder::new();
    let mut heard = Vec::new();
    for piece in pieces {
        let mut input = *piece;
        loop {
            let event = match decoder.next(&mut input) {
                Ok(Some(event)) => event,
                Ok(None) => {
                    assert!(input.is_empty(), "input is left though more is wanted");
                    assert!(decoder.held_bytes() <= MAX_OPTION_BYTES as usize);
                    break;
                }
                Err(error) => {
                    assert_eq!(decoder.next(&mut input), Err(error), "an error stays");
                    push(&mut heard, Heard::Failed(error));
                    return heard;
                }
            };
            push(
                &mut heard,
                match event {
                    ServerEvent::ClientFlags(flags) => Heard::Flags(flags),
                    ServerEvent::Option(option) => {
                        if matches!(
                            option.body,
                            Ok(ClientOption::Go(_) | ClientOption::ExportName(_))
                        ) {
                            decoder.start_transmission();
                        }
                        Heard::Option(option)
                    }
                    ServerEvent::Request(request) => Heard::Request(request),
                    ServerEvent::Payload(bytes) => {
                        assert!(!bytes.is_empty());
                        Heard::Payload(bytes.to_vec())
                    }
                },
            );
        }
    }
    heard
}

/// Simple replies with an even cookie answer reads of so many bytes.
fn read_length(cookie: u64) -> Option<u32> {
    match cookie {
        u64::MAX => None,
        cookie if cookie % 2 == 0 => Some(u32::try_from(cookie % 1000).expect("small") + 1),
        _ => Some(0),
    }
}

/// Events that a client decodes. Transmission starts after the first acknowledgement of `GO`.
fn client_hears(pieces: &[&[u8]], export: Option<bool>) -> Vec<Heard> {
    let mut decoder = ClientDecoder::new();
    let mut heard = Vec::new();
    for piece in pieces {
        let mut input = *piece;
        loop {
            let event = match decoder.next(&mut input, read_length) {
                Ok(Some(event)) => event,
                Ok(None) => {
                    assert!(input.is_empty(), "input is left though more is wanted");
                    assert!(decoder.held_bytes() <= MAX_STATUS_BYTES as usize);
                    break;
                }
                Err(error) => {
                    push(&mut heard, Heard::Failed(error));
                    return heard;
                }
            };
            push(
                &mut heard,
                match event {
                    ClientEvent::Greeting(flags) => {
                        if let Some(no_zeroes) = export {
                            decoder.expect_export(no_zeroes);
                        }
                        Heard::Greeting(flags)
                    }
                    ClientEvent::Option { option, reply } => {
                        if option == opt::GO && reply == OptionReply::Ack {
                            decoder.start_transmission();
                        }
                        Heard::Reply(option, reply)
                    }
                    ClientEvent::Export { size, flags } => Heard::Export(size, flags),
                    ClientEvent::Reply(reply) => Heard::Simple(reply),
                    ClientEvent::Chunk { cookie, done, chunk } => Heard::Chunk(cookie, done, chunk),
                    ClientEvent::Payload(bytes) => {
                        assert!(!bytes.is_empty());
                        Heard::Payload(bytes.to_vec())
                    }
                },
            );
        }
    }
    heard
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![Just(String::new()), "[a-zä-ü/]{1,20}", Just("n".repeat(4096))]
}

fn option() -> impl Strategy<Value = ClientOption> {
    let info = (name(), prop::collection::vec(0..9_u16, 0..5))
        .prop_map(|(export, wanted)| InfoQuery { export, wanted });
    let meta = || {
        (name(), prop::collection::vec(name(), 0..5))
            .prop_map(|(export, queries)| MetaQuery { export, queries })
    };
    prop_oneof![
        Just(ClientOption::Abort),
        Just(ClientOption::List),
        Just(ClientOption::StartTls),
        Just(ClientOption::StructuredReply),
        info.prop_map(ClientOption::Info),
        meta().prop_map(ClientOption::ListMetaContext),
        meta().prop_map(ClientOption::SetMetaContext),
        (11..99_u32).prop_map(ClientOption::Unknown),
    ]
}

fn last_option() -> impl Strategy<Value = ClientOption> {
    prop_oneof![
        name().prop_map(ClientOption::ExportName),
        name().prop_map(|export| ClientOption::Go(InfoQuery { export, wanted: vec![3] })),
    ]
}

fn request() -> impl Strategy<Value = Request> {
    (any::<u16>(), 0..12_u16, any::<u64>(), any::<u64>(), any::<u32>()).prop_map(
        |(flags, command, cookie, offset, length)| {
            let command = Command::from_wire(command);
            let length = if command == Command::Write { length % 3000 } else { length };
            Request { flags, command, cookie, offset, length }
        },
    )
}

fn option_reply() -> impl Strategy<Value = OptionReply> {
    let info = prop_oneof![
        (any::<u64>(), any::<u16>()).prop_map(|(size, flags)| Info::Export { size, flags }),
        name().prop_map(Info::Name),
        name().prop_map(Info::Description),
        any::<(u32, u32, u32)>().prop_map(|(minimum, preferred, maximum)| Info::BlockSize {
            minimum,
            preferred,
            maximum
        }),
        (4..u16::MAX).prop_map(Info::Unknown),
    ];
    prop_oneof![
        Just(OptionReply::Ack),
        (name(), name()).prop_map(|(name, description)| OptionReply::Server { name, description }),
        info.prop_map(OptionReply::Info),
        (any::<u32>(), name()).prop_map(|(id, name)| OptionReply::MetaContext { id, name }),
        (1..99_u32, name())
            .prop_map(|(kind, message)| OptionReply::error(rep::ERROR_BIT | kind, &message)),
        (5..99_u32).prop_map(OptionReply::Unknown),
    ]
}

fn error_code() -> impl Strategy<Value = ErrorCode> {
    prop::sample::select(vec![
        ErrorCode::Perm,
        ErrorCode::Io,
        ErrorCode::NoMem,
        ErrorCode::Inval,
        ErrorCode::NoSpc,
        ErrorCode::Overflow,
        ErrorCode::NotSup,
        ErrorCode::Shutdown,
    ])
}

/// A reply of either form, with the length of the bytes that follow.
fn reply() -> impl Strategy<Value = Heard> {
    let extents = prop::collection::vec(
        any::<(u32, u32)>().prop_map(|(length, flags)| StatusExtent { length, flags }),
        1..20,
    );
    let chunk = prop_oneof![
        Just(Chunk::None),
        (any::<u64>(), 1..3000_u32).prop_map(|(offset, length)| Chunk::Data { offset, length }),
        (any::<u64>(), any::<u32>()).prop_map(|(offset, length)| Chunk::Hole { offset, length }),
        (any::<u32>(), extents)
            .prop_map(|(context, extents)| Chunk::BlockStatus { context, extents }),
        (error_code(), name(), any::<Option<u64>>())
            .prop_map(|(error, message, offset)| Chunk::Error { error, message, offset }),
        (6..chunk::ERROR_BIT, 0..3000_u32)
            .prop_map(|(kind, length)| Chunk::Unknown { kind, length }),
    ];
    prop_oneof![
        (prop::option::of(error_code()), 0..u64::MAX)
            .prop_map(|(error, cookie)| Heard::Simple(SimpleReply { error, cookie })),
        (any::<u64>(), any::<bool>(), chunk)
            .prop_map(|(cookie, done, chunk)| Heard::Chunk(cookie, done, chunk)),
    ]
}

fn content(len: u32, seed: u64) -> Vec<u8> {
    (0..len).map(|at| (u64::from(at) ^ seed) as u8).collect()
}

proptest! {
    #[test]
    fn server_codec_round_trips(
        options in prop::collection::vec(option(), 0..6),
        last in last_option(),
        requests in prop::collection::vec(request(), 0..12),
        cuts in prop::collection::vec(any::<usize>(), 0..40),
    ) {
        let mut bytes = Vec::new();
        let mut said = vec![Heard::Flags(3)];
        encode_client_flags(3, &mut bytes);
        for option in options.iter().chain([&last]) {
            option.encode(&mut bytes);
            said.push(Heard::Option(OptionRequest { code: option.code(),
                body: Ok(option.clone()) }));
        }
        for request in &requests {
            request.encode(&mut bytes);
            said.push(Heard::Request(*request));
            if request.payload_bytes() > 0 {
                let payload = content(request.payload_bytes(), request.cookie);
                bytes.extend(&payload);
                said.push(Heard::Payload(payload));
            }
        }
        prop_assert_eq!(&server_hears(&pieces(&bytes, &cuts)), &said);
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        prop_assert_eq!(&server_hears(&single), &said);
    }

    #[test]
    fn client_codec_round_trips(
        replies in prop::collection::vec((1..20_u32, option_reply()), 0..6),
        export in any::<Option<bool>>(),
        transmission in prop::collection::vec(reply(), 0..12),
        cuts in prop::collection::vec(any::<usize>(), 0..40),
    ) {
        let mut bytes = Vec::new();
        let mut said = vec![Heard::Greeting(3)];
        encode_greeting(3, &mut bytes);
        if let Some(no_zeroes) = export {
            encode_export_reply(4096, 1, no_zeroes, &mut bytes);
            said.push(Heard::Export(4096, 1));
        } else {
            let replies = replies.into_iter().filter(|reply| *reply != (opt::GO, OptionReply::Ack));
            for (option, reply) in replies.chain([(opt::GO, OptionReply::Ack)]) {
                reply.encode(option, &mut bytes);
                said.push(Heard::Reply(option, reply));
            }
        }
        for heard in transmission {
            let mut follows = 0;
            match &heard {
                Heard::Simple(reply) => {
                    reply.encode(&mut bytes);
                    if reply.error.is_none() {
                        follows = read_length(reply.cookie).expect("known");
                    }
                }
                Heard::Chunk(cookie, done, chunk) => {
                    chunk.encode(*cookie, *done, &mut bytes);
                    match chunk {
                        Chunk::Data { length, .. } => follows = *length,
                        Chunk::Unknown { length, .. } => bytes.extend(content(*length, 7)),
                        _ => {}
                    }
                }
                _ => unreachable!("only replies"),
            }
            said.push(heard);
            if follows > 0 {
                bytes.extend(content(follows, 3));
                said.push(Heard::Payload(content(follows, 3)));
            }
        }
        prop_assert_eq!(&client_hears(&pieces(&bytes, &cuts), export), &said);
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        prop_assert_eq!(&client_hears(&single, export), &said);
    }

    #[test]
    fn damaged_bytes_do_not_panic_the_server_codec(
        options in prop::collection::vec(option(), 0..4),
        last in last_option(),
        requests in prop::collection::vec(request(), 0..6),
        damage in prop::collection::vec((any::<usize>(), any::<u8>()), 0..4),
        tail in prop::collection::vec(any::<u8>(), 0..200),
        cuts in prop::collection::vec(any::<usize>(), 0..10),
    ) {
        let mut bytes = Vec::new();
        encode_client_flags(1, &mut bytes);
        options.iter().chain([&last]).for_each(|option| option.encode(&mut bytes));
        requests.iter().for_each(|request| request.encode(&mut bytes));
        for (at, value) in damage {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        bytes.extend(tail);
        prop_assert_eq!(server_hears(&pieces(&bytes, &cuts)), server_hears(&[&bytes]));
    }

    #[test]
    fn damaged_bytes_do_not_panic_the_client_codec(
        replies in prop::collection::vec((1..20_u32, option_reply()), 0..4),
        transmission in prop::collection::vec(reply(), 0..6),
        damage in prop::collection::vec((any::<usize>(), any::<u8>()), 0..4),
        tail in prop::collection::vec(any::<u8>(), 0..200),
        cuts in prop::collection::vec(any::<usize>(), 0..10),
    ) {
        let mut bytes = Vec::new();
        encode_greeting(3, &mut bytes);
        for (option, reply) in replies {
            reply.encode(option, &mut bytes);
        }
        OptionReply::Ack.encode(opt::GO, &mut bytes);
        for heard in transmission {
            match heard {
                Heard::Simple(reply) => reply.encode(&mut bytes),
                Heard::Chunk(cookie, done, chunk) => chunk.encode(cookie, done, &mut bytes),
                _ => {}
            }
        }
        for (at, value) in damage {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        bytes.extend(tail);
        prop_assert_eq!(client_hears(&pieces(&bytes, &cuts), None), client_hears(&[&bytes], None));
    }

    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
        server_hears(&[&bytes]);
        client_hears(&[&bytes], None);
        for code in 0..12 {
            let _ = ClientOption::decode(code, &bytes);
        }
        for kind in (0..12).chain(rep::ERR_UNSUP..rep::ERR_UNSUP + 12) {
            let _ = OptionReply::decode(kind, &bytes);
        }
    }
}

fn option_header(code: u32, length: u32) -> Vec<u8> {
    let mut bytes = vec![0, 0, 0, 3];
    bytes.extend(b"IHAVEOPT");
    bytes.extend(code.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

#[test]
fn long_options_are_skipped_and_longer_ones_end_the_session() {
    let mut bytes = option_header(opt::INFO, MAX_OPTION_BYTES + 1);
    bytes.resize(bytes.len() + MAX_OPTION_BYTES as usize + 1, 7);
    ClientOption::List.encode(&mut bytes);
    let heard = server_hears(&bytes.chunks(1000).collect::<Vec<_>>());
    let too_big = Err(OptionFault::TooBig("the option is too long"));
    assert_eq!(heard[1], Heard::Option(OptionRequest { code: opt::INFO, body: too_big }));
    assert_eq!(
        heard[2],
        Heard::Option(OptionRequest { code: opt::LIST, body: Ok(ClientOption::List) })
    );

    for (option, length) in [(opt::INFO, u32::MAX), (99, 2 << 20), (opt::EXPORT_NAME, 4097)] {
        let heard = server_hears(&[&option_header(option, length)]);
        assert_eq!(heard[1..], [Heard::Failed(ProtocolError::OptionTooLong { option, length })]);
    }
}

#[test]
fn lengths_that_do_not_fit_the_option_are_refused() {
    for data in [
        &[][..],
        &[0, 0, 0, 1],
        &[0xff, 0xff, 0xff, 0xff, b'x', 0, 0],
        &[0, 0, 0, 1, b'x', 0, 1],
        &[0, 0, 0, 1, b'x', 0, 0, 0],
        &[0, 0, 0, 1, 0xff, 0, 0],
    ] {
        assert!(
            matches!(ClientOption::decode(opt::GO, data), Err(OptionFault::Invalid(_))),
            "{data:?}"
        );
    }
    let mut long = 4097_u32.to_be_bytes().to_vec();
    long.resize(4 + 4097, b'x');
    long.extend([0, 0]);
    assert!(matches!(ClientOption::decode(opt::GO, &long), Err(OptionFault::TooBig(_))));
    // A count of queries as large as the field permits, with none of them there.
    let data = [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
    assert!(matches!(
        ClientOption::decode(opt::SET_META_CONTEXT, &data),
        Err(OptionFault::Invalid(_))
    ));
}

#[test]
fn payloads_have_a_limit() {
    let mut bytes = vec![0, 0, 0, 3];
    ClientOption::ExportName(String::new()).encode(&mut bytes);
    let request = |command, length| Request { flags: 0, command, cookie: 1, offset: 0, length };
    request(Command::Read, u32::MAX).encode(&mut bytes);
    request(Command::Write, MAX_PAYLOAD_BYTES + 1).encode(&mut bytes);
    let heard = server_hears(&[&bytes]);
    assert_eq!(heard[2], Heard::Request(request(Command::Read, u32::MAX)));
    assert_eq!(heard[3], Heard::Failed(ProtocolError::PayloadTooLong(MAX_PAYLOAD_BYTES + 1)));
}

#[test]
fn reply_without_a_request_is_an_error() {
    let mut bytes = Vec::new();
    encode_greeting(3, &mut bytes);
    OptionReply::Ack.encode(opt::GO, &mut bytes);
    SimpleReply { error: None, cookie: u64::MAX }.encode(&mut bytes);
    assert_eq!(
        client_hears(&[&bytes], None).last(),
        Some(&Heard::Failed(ProtocolError::UnknownCookie(u64::MAX)))
    );
}

/// The layouts of the protocol document, byte by byte, so that both directions can not be wrong
/// in the same way.
#[test]
fn encoding_equals_the_specified_bytes() {
    let mut out = Vec::new();
    encode_greeting(3, &mut out);
    assert_eq!(out, b"NBDMAGICIHAVEOPT\0\x03");

    out.clear();
    ClientOption::Go(InfoQuery { export: "ab".into(), wanted: vec![3] }).encode(&mut out);
    assert_eq!(out, b"IHAVEOPT\0\0\0\x07\0\0\0\x0a\0\0\0\x02ab\0\x01\0\x03");

    out.clear();
    OptionReply::Info(Info::Export { size: 0x0102, flags: 0x0304 }).encode(opt::GO, &mut out);
    assert_eq!(
        out,
        b"\x00\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x07\0\0\0\x03\0\0\0\x0c\0\0\0\0\0\0\0\0\
              \x01\x02\x03\x04"
    );

    out.clear();
    let request =
        Request { flags: 1, command: Command::Write, cookie: 5, offset: 0x200, length: 0x400 };
    request.encode(&mut out);
    assert_eq!(out, b"\x25\x60\x95\x13\0\x01\0\x01\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\x02\0\0\0\x04\0");

    out.clear();
    SimpleReply { error: Some(ErrorCode::NoSpc), cookie: 5 }.encode(&mut out);
    assert_eq!(out, b"\x67\x44\x66\x98\0\0\0\x1c\0\0\0\0\0\0\0\x05");

    out.clear();
    Chunk::Data { offset: 0x200, length: 0x400 }.encode(5, true, &mut out);
    assert_eq!(
        out,
        b"\x66\x8e\x33\xef\0\x01\0\x01\0\0\0\0\0\0\0\x05\0\0\x04\x08\0\0\0\0\0\0\x02\0"
    );

    out.clear();
    Chunk::Error { error: ErrorCode::Io, message: "no".into(), offset: Some(9) }
        .encode(5, false, &mut out);
    assert_eq!(
        out,
        b"\x66\x8e\x33\xef\0\0\x80\x02\0\0\0\0\0\0\0\x05\0\0\0\x10\0\0\0\x05\0\x02no\
              \0\0\0\0\0\0\0\x09"
    );
}
