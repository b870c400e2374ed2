//! The real store against moto, an independent implementation of S3.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

#[path = "../../../tests/support/moto.rs"]
mod moto;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::rc::Rc;

use bytes::Bytes;
use moto::Moto;
use ubcache_env::local::join_all;
use ubcache_env::testing::device_conformance;
use ubcache_env::{Buf, Device, Durability, Nanos, Sector};
use ubcache_host::{Host, IoBackend};
use ubcache_objects::s3::{Location, S3Store};
use ubcache_objects::{
    Condition, ObjectDisk, OpenFailure, OpenOptions, Shape, Store, StoreError, create,
};

const SHAPE: Shape = Shape { size_bytes: 64 << 20, object_bytes: 1 << 20 };
const BUCKET: &str = "bucket";

/// A server in a directory of its own.
fn start() -> (Moto, tempfile::TempDir) {
    let directory = tempfile::tempdir().expect("a directory");
    (Moto::start(directory.path()), directory)
}

impl Moto {
    fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    fn store(&self, prefix: &str) -> S3Store {
        store(&self.endpoint(), prefix)
    }
}

fn store(endpoint: &str, prefix: &str) -> S3Store {
    let location = Location {
        bucket: BUCKET.to_owned(),
        prefix: prefix.to_owned(),
        endpoint: Some(endpoint.to_owned()),
        region: Some("us-east-1".to_owned()),
        ..with_credentials()
    };
    S3Store::new(&location).expect("a client")
}

/// Any store here takes these; without some, a server of metadata would be asked for them.
fn with_credentials() -> Location {
    static FILE: std::sync::OnceLock<tempfile::NamedTempFile> = std::sync::OnceLock::new();
    let file = FILE.get_or_init(|| {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        let text = b"[test]\naws_access_key_id = key\naws_secret_access_key = secret\n";
        file.write_all(text).expect("a file");
        file
    });
    Location {
        credentials: Some(file.path().to_owned()),
        profile: Some("test".to_owned()),
        ..Location::default()
    }
}

fn host() -> Host {
    Host::new(IoBackend::Auto).expect("a host")
}

fn options() -> OpenOptions {
    OpenOptions { is_gone: Rc::new(|_| true), ..OpenOptions::default() }
}

#[test]
fn a_volume_on_a_store_has_the_duties_of_a_device_and_is_there_after_a_restart() {
    let (moto, _directory) = start();
    let host = host();
    let env = host.env();
    host.block_on(async {
        create(&env, moto.store("a/b"), SHAPE, &options()).await.expect("creates");
        let again = create(&env, moto.store("a/b"), SHAPE, &options()).await;
        assert_eq!(again, Err(OpenFailure::Exists(SHAPE.size_bytes)));
        let disk = ObjectDisk::open(&env, moto.store("a/b"), &options()).await.expect("opens");
        device_conformance(&env, Rc::new(disk.clone())).await;
        let mut data = Buf::zeroed(3 << 20);
        data.as_mut_slice().fill(7);
        let write = disk.write(Sector(31), data.into(), Durability::Fua);
        assert_eq!(write.await, Ok(()));
        // Nothing is closed: kill -9 leaves it so.
        let next = ObjectDisk::open(&env, moto.store("a/b"), &options()).await.expect("opens");
        let (buf, result) = next.read(Sector(31), Buf::zeroed(3 << 20)).await;
        assert!(result.is_ok() && buf.as_slice().iter().all(|byte| *byte == 7));
        let late = disk.write(Sector(0), Buf::zeroed(512).into(), Durability::Fua);
        assert!(late.await.is_err(), "another writer has it");
        assert_eq!(next.close().await, Ok(()));
    });
}

#[test]
fn requests_have_the_outcomes_that_the_volume_relies_on() {
    let (moto, _directory) = start();
    let host = host();
    host.block_on(async {
        let store = moto.store("p");
        let put = |text: &'static str, condition| store.put("x", Bytes::from(text), condition);
        assert!(matches!(store.get("x", None).await, Err(StoreError::NotFound(_))));
        let first = put("0123456789", Condition::Absent).await.expect("puts");
        assert_eq!(put("b", Condition::Absent).await, Err(StoreError::Conflict));
        let found = store.get("x", Some(3..6)).await.expect("gets");
        assert_eq!((&found.bytes[..], &found.etag), (&b"345"[..], &first));
        let second = put("b", Condition::Matches(first.clone())).await.expect("puts");
        assert_ne!(first, second);
        assert_eq!(put("c", Condition::Matches(first)).await, Err(StoreError::Conflict));
        for key in 0..5 {
            let key = format!("data/{key}");
            store.put(&key, Bytes::from("x"), Condition::None).await.expect("puts");
        }
        let all = store.list("data/", "").await.expect("lists");
        assert_eq!(all, ["data/0", "data/1", "data/2", "data/3", "data/4"]);
        assert_eq!(store.list("data/", "data/2").await.expect("lists"), ["data/3", "data/4"]);
        assert!(store.list("data/", "data/4").await.expect("lists").is_empty());
        assert_eq!(store.delete("data/0").await, Ok(()));
        assert_eq!(store.delete("data/0").await, Ok(()));
        let endpoint = Some(moto.endpoint());
        let location = Location { bucket: "none".to_owned(), endpoint, ..with_credentials() };
        let elsewhere = S3Store::new(&location).expect("a client");
        let failure = elsewhere.get("x", None).await.expect_err("no bucket");
        assert!(failure.to_string().contains("NoSuchBucket"), "{failure}");
    });
}

/// Conditions that hold in a store of this process hold over HTTP as well, where requests of
/// several clients meet in the threads of a server.
#[test]
fn of_writers_that_attach_at_the_same_time_one_gets_the_volume() {
    let (moto, _directory) = start();
    let host = host();
    let env = host.env();
    host.block_on(async {
        create(&env, moto.store("race"), SHAPE, &options()).await.expect("creates");
        for round in 1..=20_u8 {
            let attach = (0..4).map(|writer| {
                let (store, env) = (moto.store("race"), env.clone());
                let options = OpenOptions { holder: format!("writer {writer}"), ..options() };
                async move { ObjectDisk::open(&env, store, &options).await }
            });
            let (mut got, mut refused) = (Vec::new(), Vec::new());
            for opened in join_all(attach).await {
                match opened {
                    Ok(disk) => got.push(disk),
                    Err(failure) => refused.push(failure),
                }
            }
            let is_in_use = |failure: &OpenFailure| matches!(failure, OpenFailure::InUse(_));
            assert!(refused.iter().all(is_in_use), "round {round}: {refused:?}");
            // One whose holder "is gone" may be displaced as soon as it has the volume.
            let mut writers = 0;
            for disk in &got {
                let data = Buf::from_bytes(&[round; 4096]).into();
                writers += u32::from(disk.write(Sector(0), data, Durability::Fua).await.is_ok());
            }
            assert_eq!(writers, 1, "round {round}: {} attached, {refused:?}", got.len());
        }
        let disk = ObjectDisk::open(&env, moto.store("race"), &options()).await.expect("opens");
        let (buf, result) = disk.read(Sector(0), Buf::zeroed(4096)).await;
        assert!(result.is_ok() && buf.as_slice() == [20; 4096]);
        assert_eq!(disk.close().await, Ok(()));
    });
}

/// Answers each connection with this and closes it. Returns its URL.
fn server_that_answers(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    std::thread::Builder::new()
        .spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let mut head = [0; 4096];
                let _ = stream.read(&mut head);
                let _ = stream.write_all(answer.as_bytes());
            }
        })
        .expect("a thread");
    url
}

#[test]
fn errors_of_a_store_are_told_apart() {
    let host = host();
    host.block_on(async {
        for (answer, expected) in [
            ("HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", "busy"),
            ("HTTP/1.1 500 X\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno", "busy"),
            ("HTTP/1.1 429 X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", "busy"),
            ("HTTP/1.1 403 X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", "denied"),
            ("HTTP/1.1 501 X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", "not supported"),
            ("HTTP/1.1 400 X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", "400"),
            ("", "no answer"),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 100\r\nETag: \"1\"\r\nLast-Modified: Mon, 30 \
                 Nov 2026 00:00:00 GMT\r\nConnection: close\r\n\r\ntorn",
                "no answer",
            ),
        ] {
            let store = store(&server_that_answers(answer), "p");
            let failure = store.get("x", None).await.expect_err(answer);
            assert!(failure.to_string().contains(expected), "{answer}: {failure:?}");
        }
        let closed = store("http://127.0.0.1:9", "p");
        let failure = closed.get("x", None).await.expect_err("nobody listens");
        assert!(matches!(failure, StoreError::Unreachable(_)), "{failure:?}");
    });
}

#[test]
fn a_store_that_is_gone_fails_requests_after_the_patience_with_its_words() {
    let (mut moto, _directory) = start();
    let host = host();
    let env = host.env();
    host.block_on(async {
        let options = OpenOptions { patience: Nanos::from_millis(1500), ..options() };
        create(&env, moto.store("v"), SHAPE, &options).await.expect("creates");
        let disk = ObjectDisk::open(&env, moto.store("v"), &options).await.expect("opens");
        let data = || Buf::from_bytes(&[3; 4096]).into();
        assert_eq!(disk.write(Sector(0), data(), Durability::Fua).await, Ok(()));
        moto.kill();
        assert_eq!(disk.write(Sector(8), data(), Durability::Volatile).await, Ok(()));
        assert!(disk.flush().await.is_err());
        let (_, result) = disk.read(Sector(8), Buf::zeroed(4096)).await;
        assert_eq!(result, Ok(()), "what was written is still there");
        let again = ObjectDisk::open(&env, moto.store("v"), &options).await;
        assert!(matches!(again.err(), Some(OpenFailure::Store(StoreError::Unreachable(_)))));
    });
}
