//! Negotiation over a connection in memory: options, exports, old clients.

mod support;

use std::rc::Rc;

use support::client::{Client, Heard};
use support::server::{error_kind, go, query, serve};
use support::volume::MemoryVolume;
use ubcache_nbd::proto::constants::{MAX_PAYLOAD_BYTES, info, opt, rep, transmission};
use ubcache_nbd::proto::{
    ClientOption, Command, ErrorCode, Info, InfoQuery, OptionReply, encode_client_flags,
};
use ubcache_nbd::{Exports, ServeError};

#[test]
fn options_are_answered() {
    let result = serve(|server| async move {
        server.second.info.borrow_mut().read_only = true;
        server.second.info.borrow_mut().block_bytes = 4096;
        let mut client = Client::hello(server.stream.clone()).await;
        let exports = client.option(ClientOption::List).await;
        let listed = |name: &str, description: &str| OptionReply::Server {
            name: name.into(),
            description: description.into(),
        };
        assert_eq!(
            exports,
            [listed("first", ""), listed("second", "the other one"), OptionReply::Ack]
        );
        assert_eq!(error_kind(&client.option(ClientOption::StartTls).await), Some(rep::ERR_UNSUP));
        assert_eq!(
            error_kind(&client.option(ClientOption::Unknown(77)).await),
            Some(rep::ERR_UNSUP)
        );
        let unknown = InfoQuery { export: "third".into(), wanted: vec![] };
        assert_eq!(
            error_kind(&client.option(ClientOption::Info(unknown)).await),
            Some(rep::ERR_UNKNOWN)
        );
        assert_eq!(error_kind(&client.option(go("third", &[])).await), Some(rep::ERR_UNKNOWN));

        let set = |queries: &[&str]| ClientOption::SetMetaContext(query("second", queries));
        let list = |queries: &[&str]| ClientOption::ListMetaContext(query("second", queries));
        assert_eq!(
            error_kind(&client.option(set(&["base:allocation"])).await),
            Some(rep::ERR_INVALID)
        );
        assert_eq!(client.option(ClientOption::StructuredReply).await, [OptionReply::Ack]);
        let context = |id| OptionReply::MetaContext { id, name: "base:allocation".into() };
        let named = |name: &str| OptionReply::MetaContext { id: 0, name: name.into() };
        let own = [named("ubcache:cached"), named("ubcache:dirty"), OptionReply::Ack];
        assert_eq!(client.option(list(&["ubcache:"])).await, own);
        let all = [&[context(0)][..], &own].concat();
        assert_eq!(client.option(list(&[])).await, all);
        for queries in [&["base:"][..], &["qemu:", "base:allocation"]] {
            assert_eq!(client.option(list(queries)).await, [context(0), OptionReply::Ack]);
        }
        assert_eq!(client.option(list(&["qemu:"])).await, [OptionReply::Ack]);
        assert_eq!(client.option(set(&["base:"])).await, [OptionReply::Ack]);
        assert_eq!(client.option(set(&["base:allocation"])).await, [context(1), OptionReply::Ack]);
        let elsewhere = ClientOption::SetMetaContext(query("third", &["base:allocation"]));
        assert_eq!(error_kind(&client.option(elsewhere).await), Some(rep::ERR_UNKNOWN));

        let replies = client.option(go("second", &[info::NAME, info::DESCRIPTION, 99])).await;
        let flags = transmission::HAS_FLAGS
            | transmission::READ_ONLY
            | transmission::SEND_FLUSH
            | transmission::SEND_FUA
            | transmission::SEND_DF
            | transmission::CAN_MULTI_CONN
            | transmission::SEND_CACHE;
        let block = Info::BlockSize { minimum: 1, preferred: 4096, maximum: MAX_PAYLOAD_BYTES };
        assert_eq!(
            replies,
            [
                OptionReply::Info(Info::Export { size: 200 * 512, flags }),
                OptionReply::Info(block),
                OptionReply::Info(Info::Name("second".into())),
                OptionReply::Info(Info::Description("the other one".into())),
                OptionReply::Ack,
            ]
        );
        // The contexts were forgotten with the failed request for others.
        assert_eq!(client.error(Command::BlockStatus, 0, 0, 4096).await, Some(ErrorCode::Inval));
        for command in [Command::Trim, Command::WriteZeroes] {
            assert_eq!(client.error(command, 0, 0, 4096).await, Some(ErrorCode::Perm));
        }
        assert_eq!(client.write(0, 0, &[1; 4096]).await, Some(ErrorCode::Perm));
        assert_eq!(client.write(0, 1, &[1; 100]).await, Some(ErrorCode::Perm));
        assert_eq!(client.error(Command::Read, 0, 512, 4096).await, None);
        assert_eq!(client.error(Command::Read, 0, 4096, 511).await, None);
        assert_eq!(client.error(Command::Read, 0, 4096, 4096).await, None);
        client.leave().await;
    });
    assert_eq!(result, Ok(()));
}

#[test]
fn abort_is_acknowledged() {
    let result = serve(|server| async move {
        let mut client = Client::hello(server.stream.clone()).await;
        assert_eq!(client.option(ClientOption::Abort).await, [OptionReply::Ack]);
        assert_eq!(client.next().await, None);
    });
    assert_eq!(result, Ok(()));
}

#[test]
fn old_style_client_is_served() {
    for no_zeroes in [false, true] {
        let result = serve(move |server| async move {
            let mut client = Client::new(server.stream.clone());
            assert_eq!(client.next().await, Some(Heard::Greeting(3)));
            let mut out = Vec::new();
            encode_client_flags(if no_zeroes { 3 } else { 1 }, &mut out);
            ClientOption::ExportName("second".into()).encode(&mut out);
            client.decoder.expect_export(no_zeroes);
            let (_, request) = client.request(Command::Read, 0, 512, 1024);
            out.extend(request);
            client.send(&out).await.expect("connected");
            let flags = transmission::HAS_FLAGS
                | transmission::SEND_FLUSH
                | transmission::SEND_FUA
                | transmission::CAN_MULTI_CONN
                | transmission::SEND_CACHE
                | transmission::SEND_TRIM
                | transmission::SEND_WRITE_ZEROES
                | transmission::SEND_FAST_ZERO;
            assert_eq!(client.next().await, Some(Heard::Export { size: 200 * 512, flags }));
            assert_eq!(client.answer().await.content, [0; 1024]);
            client.leave().await;
        });
        assert_eq!(result, Ok(()));
    }
    let result = serve(|server| async move {
        let mut client = Client::hello(server.stream.clone()).await;
        let mut out = Vec::new();
        ClientOption::ExportName("third".into()).encode(&mut out);
        client.send(&out).await.expect("connected");
        assert_eq!(client.next().await, None);
    });
    assert_eq!(result, Err(ServeError::UnknownExport("third".into())));
}

#[test]
fn exports_can_be_added_and_removed_at_run_time() {
    let result = serve(|server| async move {
        let mut client = Client::hello(server.stream.clone()).await;
        server.exports.remove("first").expect("was there");
        // The empty name does not move to another volume.
        let replies = client.option(go("", &[info::NAME])).await;
        assert_eq!(error_kind(&replies), Some(rep::ERR_UNKNOWN));
        let replies = client.option(go("second", &[info::NAME])).await;
        assert!(replies.contains(&OptionReply::Info(Info::Name("second".into()))));
        server.exports.remove("second").expect("was there");
        assert_eq!(client.error(Command::Read, 0, 0, 512).await, None);
        client.leave().await;
    });
    assert_eq!(result, Ok(()));
}

#[test]
fn requests_sent_with_the_last_option_are_served() {
    let result = serve(|server| async move {
        let mut client = Client::hello(server.stream.clone()).await;
        let mut out = Vec::new();
        go("second", &[]).encode(&mut out);
        let (cookie, request) = client.request(Command::Read, 0, 0, 512);
        out.extend(request);
        client.send(&out).await.expect("connected");
        client.option_replies(opt::GO).await;
        assert_eq!(client.answer().await.cookie, cookie);
        client.leave().await;
    });
    assert_eq!(result, Ok(()));
}

#[test]
fn export_names_are_unique_and_valid() {
    let exports = Exports::new();
    exports.add(MemoryVolume::new("a", 8)).expect("new");
    assert!(exports.add(MemoryVolume::new("a", 8)).is_err());
    assert!(exports.add(MemoryVolume::new("", 8)).is_err());
    assert!(exports.add(MemoryVolume::new(&"x".repeat(4097), 8)).is_err());
    exports.add_as("b".into(), "text".into(), MemoryVolume::new("c", 8)).expect("new");
    assert_eq!(exports.list(), [("a".into(), String::new()), ("b".into(), "text".into())]);
    assert!(exports.get("c").is_none() && exports.get("b").is_some());
    assert!(Rc::ptr_eq(&exports.get("").expect("the first"), &exports.get("a").expect("there")));
}
