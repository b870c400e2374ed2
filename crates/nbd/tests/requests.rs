//! Requests over a connection in memory: every command, errors, order of replies, payloads.

mod support;

use std::rc::Rc;

use support::client::Client;
use support::server::{go, pattern, query, sectors, serve};
use support::volume::Asked;
use support::world::duplex;
use ubcache_env::local::join;
use ubcache_env::{Env, IoError, Stream, StreamId, VolumeError};
use ubcache_nbd::proto::constants::{MAX_PAYLOAD_BYTES, STATE_HOLE, STATE_ZERO, cmd_flag};
use ubcache_nbd::proto::{ClientOption, Command, ErrorCode, OptionReply, StatusExtent};
use ubcache_nbd::{ConnectionStats, ServerOptions, serve_connection};

#[test]
fn every_command_with_simple_and_structured_replies() {
    for structured in [false, true] {
        let result = serve(move |server| async move {
            let mut client = Client::go(server.stream.clone(), "", structured).await;
            let content = pattern(8192, 1);
            assert_eq!(client.write(0, 4096, &content).await, None);
            assert_eq!(client.write(cmd_flag::FUA, 512, &content[..512]).await, None);
            let answer = client.ask(Command::Read, 0, 4096, 8192).await;
            assert_eq!((answer.error, &answer.content), (None, &content));
            assert_eq!(client.ask(Command::Read, 0, 512, 512).await.content, content[..512]);
            assert_eq!(client.error(Command::Flush, 0, 0, 0).await, None);
            assert_eq!(client.error(Command::Cache, 0, 1024, 2048).await, None);
            assert_eq!(client.error(Command::Trim, cmd_flag::FUA, 4096, 4096).await, None);
            assert_eq!(client.error(Command::WriteZeroes, 0, 8192, 512).await, None);
            assert_eq!(
                client.error(Command::WriteZeroes, cmd_flag::NO_HOLE, 8704, 512).await,
                None
            );
            assert_eq!(
                client.error(Command::WriteZeroes, cmd_flag::FAST_ZERO, 0, 512).await,
                Some(ErrorCode::NotSup)
            );
            let mut expected = vec![
                Asked::Write { range: sectors(8, 16), fua: false },
                Asked::Write { range: sectors(1, 1), fua: true },
                Asked::Read(sectors(8, 16)),
                Asked::Read(sectors(1, 1)),
                Asked::Flush,
                Asked::Prefetch(sectors(2, 4)),
                Asked::Discard { range: sectors(8, 8), fua: true },
                Asked::Zero { range: sectors(16, 1), fua: false, may_unmap: true },
                Asked::Zero { range: sectors(17, 1), fua: false, may_unmap: false },
            ];
            if structured {
                let answer = client.ask(Command::BlockStatus, 0, 0, 16384).await;
                let data = |length| StatusExtent { length, flags: 0 };
                let hole = |length| StatusExtent { length, flags: STATE_HOLE | STATE_ZERO };
                let extents =
                    vec![hole(512), data(512), hole(8192 - 1024 + 512), data(3584), hole(4096)];
                assert_eq!(answer.extents, extents);
                let answer = client.ask(Command::BlockStatus, cmd_flag::REQ_ONE, 512, 8192).await;
                assert_eq!(answer.extents, [data(512)]);
                assert_eq!(
                    client.ask(Command::Read, cmd_flag::DF, 512, 512).await.content,
                    content[..512]
                );
                expected.push(Asked::Status(sectors(0, 32)));
                expected.push(Asked::Status(sectors(1, 16)));
                expected.push(Asked::Read(sectors(1, 1)));
            } else {
                assert_eq!(
                    client.error(Command::BlockStatus, 0, 0, 512).await,
                    Some(ErrorCode::Inval)
                );
                assert_eq!(
                    client.error(Command::Read, cmd_flag::DF, 0, 512).await,
                    Some(ErrorCode::Inval)
                );
            }
            assert_eq!(*server.first.asked.borrow(), expected);
            assert!(server.first.streams.borrow().iter().all(|stream| *stream == StreamId(7)));
            let counts = server.stats.snapshot();
            assert_eq!(counts.export.as_deref(), Some("first"));
            assert_eq!((counts.writes, counts.written_bytes), (2, 8704));
            assert_eq!(counts.requests(), if structured { 13 } else { 12 });
            assert_eq!(counts.errors, if structured { 1 } else { 3 });
            client.leave().await;
        });
        assert_eq!(result, Ok(()));
    }
}

#[test]
fn requests_are_parsed_byte_by_byte() {
    let result = serve(|server| async move {
        let (ours, server_end) = duplex(1 << 20);
        server_end.piece.set(1);
        let stats = Rc::new(ConnectionStats::default());
        let options = ServerOptions { stats: stats.clone(), ..ServerOptions::default() };
        let exports = server.exports.clone();
        let serving =
            serve_connection(server.env.clone(), server_end, exports, options, StreamId(8));
        let using = async {
            let mut client = Client::go(ours, "second", true).await;
            let content = pattern(70_144, 3);
            assert_eq!(client.write(0, 1024, &content).await, None);
            assert_eq!(client.ask(Command::Read, 0, 1024, 70_144).await.content, content);
            client.leave().await;
        };
        let (result, ()) = join(serving, using).await;
        assert_eq!(result, Ok(()));
        assert!(server.second.aligned.get());
        assert_eq!(stats.snapshot().receives, stats.snapshot().received_bytes);
        server.stream.close();
    });
    assert_eq!(result, Ok(()));
}

#[test]
fn bad_requests_get_errors_and_the_connection_goes_on() {
    let result = serve(|server| async move {
        let mut client = Client::go(server.stream.clone(), "first", true).await;
        let size = 4096 * 512;
        for (command, offset, length, error) in [
            (Command::Read, 0, 0, ErrorCode::Inval),
            (Command::Read, size, 512, ErrorCode::Inval),
            (Command::Read, size - 1, 2, ErrorCode::Inval),
            (Command::Read, u64::MAX - 511, 512, ErrorCode::Inval),
            (Command::Read, 0, MAX_PAYLOAD_BYTES + 512, ErrorCode::Inval),
            (Command::Trim, size - 512, 1024, ErrorCode::Inval),
            (Command::Cache, size, 512, ErrorCode::Inval),
            (Command::WriteZeroes, size, 512, ErrorCode::NoSpc),
            (Command::WriteZeroes, 0, u32::MAX - 511, ErrorCode::NoSpc),
            (Command::BlockStatus, size, 512, ErrorCode::Inval),
            (Command::Flush, 0, 512, ErrorCode::Inval),
            (Command::Unknown(99), 0, 512, ErrorCode::Inval),
        ] {
            assert_eq!(client.error(command, 0, offset, length).await, Some(error), "{command:?}");
        }
        assert_eq!(client.write(0, size, &[1; 512]).await, Some(ErrorCode::NoSpc));
        assert_eq!(client.write(0, size - 512, &pattern(200_192, 1)).await, Some(ErrorCode::NoSpc));
        assert_eq!(client.write(0, 0, &[]).await, Some(ErrorCode::Inval));
        assert_eq!(client.write(cmd_flag::REQ_ONE, 0, &[1; 512]).await, Some(ErrorCode::Inval));
        assert_eq!(client.error(Command::Read, 1 << 9, 0, 512).await, Some(ErrorCode::Inval));
        assert!(server.first.asked.borrow().is_empty());
        assert_eq!(client.error(Command::Read, cmd_flag::FUA, 0, 512).await, None);
        client.leave().await;
    });
    assert_eq!(result, Ok(()));
}

#[test]
fn errors_of_the_volume_keep_their_meaning() {
    let range = sectors(0, 1);
    let cases = [
        (VolumeError::Io(IoError::Os(5)), ErrorCode::Io),
        (VolumeError::Io(IoError::Os(28)), ErrorCode::NoSpc),
        (VolumeError::Io(IoError::NoMemory), ErrorCode::NoMem),
        (VolumeError::Io(IoError::Gone), ErrorCode::Io),
        (VolumeError::Io(IoError::NotSupported), ErrorCode::NotSup),
        (VolumeError::BadRange { range, sectors: 9, block_bytes: 512 }, ErrorCode::Inval),
        (VolumeError::DirtyDataLost(range), ErrorCode::Io),
        (VolumeError::ReadOnly, ErrorCode::Perm),
        (VolumeError::Unavailable("stopping".into()), ErrorCode::Shutdown),
    ];
    for structured in [false, true] {
        let cases = cases.clone();
        let result = serve(move |server| async move {
            let mut client = Client::go(server.stream.clone(), "", structured).await;
            for (failure, error) in cases {
                server.first.failures.borrow_mut().push_back(Some(failure));
                assert_eq!(client.error(Command::Read, 0, 0, 512).await, Some(error));
            }
            client.leave().await;
        });
        assert_eq!(result, Ok(()));
    }
}

#[test]
fn replies_come_in_order_of_completion_and_together() {
    let result = serve(|server| async move {
        let mut client = Client::go(server.stream.clone(), "", false).await;
        let slow = server.first.hold();
        let sends = server.stats.snapshot().sends;
        let receives = server.stats.snapshot().receives;
        let mut out = Vec::new();
        let mut cookies = Vec::new();
        for at in 0..64 {
            let (cookie, request) = client.request(Command::Read, 0, at * 512, 512);
            cookies.push(cookie);
            out.extend(request);
        }
        client.send(&out).await.expect("connected");
        for cookie in &cookies[1..] {
            assert_eq!(client.answer().await.cookie, *cookie);
        }
        assert_eq!(server.stats.snapshot().sends, sends + 1, "63 replies in one send");
        assert_eq!(server.stats.snapshot().receives, receives + 1, "64 requests in one receive");
        slow.set();
        assert_eq!(client.answer().await.cookie, cookies[0]);
        client.leave().await;
    });
    assert_eq!(result, Ok(()));
}

#[test]
fn long_payloads_are_aligned_and_complete() {
    let result = serve(|server| async move {
        let mut client = Client::go(server.stream.clone(), "", true).await;
        for (at, len) in [512, 4096, 65_536, 131_072, 200_192, 1 << 20].into_iter().enumerate() {
            let content = pattern(len, at as u8);
            // Header and payload together, then apart.
            assert_eq!(client.write(0, 0, &content).await, None);
            assert_eq!(client.ask(Command::Read, 0, 0, len as u32).await.content, content);
            let content = pattern(len, at as u8 + 100);
            client.start(Command::Write, 0, 512, len as u32).await;
            for _ in 0..100 {
                server.env.yield_now().await;
            }
            client.send(&content).await.expect("connected");
            assert_eq!(client.answer().await.error, None);
            assert_eq!(client.ask(Command::Read, 0, 512, len as u32).await.content, content);
        }
        assert!(server.first.aligned.get());
        client.leave().await;
    });
    assert_eq!(result, Ok(()));
}

#[test]
fn a_write_without_memory_is_refused_and_the_connection_goes_on() {
    let result = serve(|server| async move {
        let mut client = Client::go(server.stream.clone(), "", true).await;
        let before = pattern(4096, 1);
        assert_eq!(client.write(0, 0, &before).await, None);
        for len in [512, 4096, 1 << 20] {
            server.supply.set(0);
            assert_eq!(client.write(0, 0, &pattern(len, 2)).await, Some(ErrorCode::NoMem));
            server.supply.set(usize::MAX);
            assert_eq!(client.ask(Command::Read, 0, 0, 4096).await.content, before);
        }
        let after = pattern(1 << 20, 3);
        assert_eq!(client.write(0, 0, &after).await, None);
        assert_eq!(client.ask(Command::Read, 0, 0, 1 << 20).await.content, after);
        client.leave().await;
    });
    assert_eq!(result, Ok(()));
}

/// Bug: requests that are no multiple of the block were refused, so that `nbdfuse` was no file and
/// a client of 512-byte blocks could not write to a volume of larger ones. Fix: all are served.
#[test]
fn requests_for_any_bytes_are_served() {
    let result = serve(|server| async move {
        server.first.info.borrow_mut().block_bytes = 4096;
        let mut client = Client::go(server.stream.clone(), "first", true).await;
        let mut expected = pattern(4096 * 512, 3);
        assert_eq!(client.write(0, 0, &expected[..65_536]).await, None);
        let bytes = pattern(9000, 5);
        assert_eq!(client.write(cmd_flag::FUA, 4095, &bytes).await, None);
        expected[4095..13_095].copy_from_slice(&bytes);
        for (offset, length) in [(20_000, 100), (24_575, 8194), (28_672, 4096)] {
            assert_eq!(client.error(Command::WriteZeroes, 0, offset, length).await, None);
            expected[offset as usize..(offset + u64::from(length)) as usize].fill(0);
        }
        for (offset, length) in [(0, 1), (4095, 2), (1, 40_000), (32_768, 4096), (8191, 8193)] {
            let read = client.ask(Command::Read, 0, offset, length).await.content;
            let range = offset as usize..(offset + u64::from(length)) as usize;
            assert!(read == expected[range], "{offset}+{length}");
        }
        server.first.asked.borrow_mut().clear();
        // A discard keeps parts of blocks.
        assert_eq!(client.error(Command::Trim, 0, 36_865, 4096).await, None);
        assert_eq!(client.error(Command::Trim, 0, 36_865, 8191).await, None);
        assert_eq!(client.error(Command::Cache, 0, 1, 1).await, None);
        let extent = |length, flags| StatusExtent { length, flags };
        let answer = client.ask(Command::BlockStatus, 0, 40_000, 30_000).await;
        assert_eq!(
            answer.extents,
            [extent(960, 0), extent(4096, 3), extent(20_480, 0), extent(4464, 3)]
        );
        assert_eq!(
            *server.first.asked.borrow(),
            [
                Asked::Discard { range: sectors(80, 8), fua: false },
                Asked::Prefetch(sectors(0, 8)),
                Asked::Status(sectors(72, 72)),
            ]
        );
        client.leave().await;
    });
    assert_eq!(result, Ok(()));
}

#[test]
fn each_chosen_context_gets_its_extents() {
    let result = serve(|server| async move {
        let mut client = Client::hello(server.stream.clone()).await;
        client.option(ClientOption::StructuredReply).await;
        let listed = |replies: Vec<OptionReply>| {
            let names = replies.into_iter().filter_map(|reply| match reply {
                OptionReply::MetaContext { id, name } => Some((id, name)),
                _ => None,
            });
            names.map(|(id, name)| format!("{id} {name}")).collect::<Vec<_>>()
        };
        let all = ["0 base:allocation", "0 ubcache:cached", "0 ubcache:dirty"];
        for (queries, expected) in [(&[][..], &all[..]), (&["ubcache:"], &all[1..]), (&["x:"], &[])]
        {
            let query = ClientOption::ListMetaContext(query("", queries));
            assert_eq!(listed(client.option(query).await), expected);
        }
        let chosen = query("", &["ubcache:", "ubcache:dirty", "base:allocation"]);
        let chosen = listed(client.option(ClientOption::SetMetaContext(chosen)).await);
        assert_eq!(chosen, ["1 base:allocation", "3 ubcache:dirty"]);
        client.option(go("", &[])).await;
        let answer = client.ask(Command::BlockStatus, 0, 0, 512).await;
        let extent = |flags| StatusExtent { length: 512, flags };
        assert_eq!(answer.extents, [extent(3), extent(0)], "one of each context, in order");
        client.leave().await;
    });
    assert_eq!(result, Ok(()));
}
