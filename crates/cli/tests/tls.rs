//! TLS over TCP with the clients that people use, and with hostile ones.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;

use support::{
    Daemon, each_io, have, make_set, must, pseudo_random, scratch, sha256_of, skipped, text, tool,
};

const NBDMAGIC: &[u8] = b"NBDMAGICIHAVEOPT\0\x03";
const CLIENT_FLAGS: [u8; 4] = [0, 0, 0, 3];
const STARTTLS: &[u8] = b"IHAVEOPT\0\0\0\x05\0\0\0\0";

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs the block of the guide that makes certificates, with changes, in a new directory.
fn certificates(directory: &Path, changes: &[(&str, &str)]) -> PathBuf {
    certificates_of(directory, changes, None)
}

/// Likewise; the authority is that of another directory, if one is given.
fn certificates_of(
    directory: &Path,
    changes: &[(&str, &str)],
    authority: Option<&Path>,
) -> PathBuf {
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/guide/tls.md");
    let guide = std::fs::read_to_string(guide).expect("a guide");
    let mut script = guide.split("```sh\n").nth(1).expect("a block").to_owned();
    script.truncate(script.find("```").expect("its end"));
    for (from, to) in changes {
        assert!(script.contains(from), "{from}");
        script = script.replace(from, to);
    }
    std::fs::create_dir(directory).expect("a new directory");
    if let Some(authority) = authority {
        for name in ["ca-cert.pem", "ca-key.pem"] {
            std::fs::copy(authority.join(name), directory.join(name)).expect("a copy");
        }
        script = script
            .lines()
            .filter(|line| !line.ends_with("ca-key.pem") && !line.ends_with("ca-cert.pem"))
            .map(|line| format!("{line}\n"))
            .collect();
    }
    must(tool("sh").args(["-e", "-c", &script]).current_dir(directory));
    directory.to_owned()
}

/// Lines of a template.
fn validity(from: &str, to: &str) -> String {
    format!("activation_date = \"{from}\"\nexpiration_date = \"{to}\"")
}

/// A directory with the files of a client only.
fn of_client(from: &Path, directory: &Path, files: &[&str]) -> PathBuf {
    std::fs::create_dir(directory).expect("a new directory");
    for name in files {
        std::fs::copy(from.join(name), directory.join(name)).expect("a copy");
    }
    directory.to_owned()
}

/// Serves a set with one disk over TCP, with these options.
fn serve(io: &str, directory: &Path, options: &[&str]) -> Daemon {
    let (cache, backings) = make_set(directory, &[16], &[]);
    let options = [&["--nbd", "tcp:127.0.0.1:0"], options].concat();
    Daemon::start(io, directory, &cache, &backings, &options)
}

/// The URI of the encrypted port.
fn uri(daemon: &Daemon) -> String {
    let line = daemon.greeting.iter().find(|line| line.contains(" nbds://")).expect("an address");
    line.rsplit_once(' ').expect("words").1.to_owned()
}

/// The address of the encrypted port.
fn address(daemon: &Daemon) -> String {
    uri(daemon).split('/').nth(2).expect("an address").to_owned()
}

/// The number of the encrypted port.
fn port(daemon: &Daemon) -> String {
    address(daemon).rsplit_once(':').expect("a port").1.to_owned()
}

/// The URI with the certificates of a client.
fn uri_for(daemon: &Daemon, client: &Path) -> String {
    format!("{}?tls-certificates={}", uri(daemon), client.display())
}

fn info(uri: &str) -> Output {
    tool("nbdinfo").args(["--size", uri]).output().expect("nbdinfo runs")
}

fn log(directory: &Path) -> String {
    std::fs::read_to_string(directory.join("serve.log")).expect("a log")
}

/// Waits for a line of the log with these words, and returns it.
fn logged(directory: &Path, words: &str) -> String {
    loop {
        let log = log(directory);
        if let Some(line) = log.lines().find(|line| line.contains(words)) {
            return line.to_owned();
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// libnbd, QEMU and nbdkit read what they wrote, over unix sockets as well.
#[test]
fn clients_write_and_read_inside_tls() {
    let test = "clients_write_and_read_inside_tls";
    if !have(test, &["certtool", "nbdinfo", "nbdcopy", "qemu-img", "qemu-io", "nbdkit"]) {
        return;
    }
    each_io(test, |io, directory| {
        let (kind, priority) = match io {
            "ring" => ("--key-type ed25519", ""),
            _ => ("--key-type rsa --bits 2048", ",priority=NORMAL:-VERS-TLS1.3"),
        };
        let changes = [("--key-type ed25519", kind)];
        let certificates = certificates(&directory.join("tls"), &changes);
        let daemon = serve(io, directory, &["--tls-verify-peer", "--tls-dir", text(&certificates)]);
        let uri = uri_for(&daemon, &certificates);
        let said = must(tool("nbdinfo").arg(&uri));
        assert!(said.contains("newstyle-fixed with TLS, using structured packets"), "{said}");

        let mut content = vec![0; 16_769_024];
        pseudo_random(7, &mut content);
        let [image, copy] = ["image", "copy"].map(|name| directory.join(name));
        std::fs::write(&image, &content).expect("room");
        must(tool("nbdcopy").arg("--flush").arg(&image).arg(&uri));
        for source in [&uri, &daemon.uri("disk0.img")] {
            must(tool("nbdcopy").arg(source).arg(&copy));
            assert_eq!(sha256_of(&copy), sha256_of(&image), "{source}");
            std::fs::remove_file(&copy).expect("it was written");
        }

        let port = port(&daemon);
        let credentials =
            format!("tls-creds-x509,id=tls0,dir={},endpoint=client", certificates.display());
        let options =
            format!("driver=nbd,host=localhost,port={port},export=disk0.img,tls-creds=tls0");
        let qemu = |program: &str, first: &[&str], more: &str, last: &[&str]| {
            let mut command = tool(program);
            let object = format!("{credentials}{more}");
            command.args(first).args(["--object", &object, "--image-opts", &options]);
            must(command.args(last))
        };
        qemu("qemu-img", &["info"], "", &[]);
        let write = ["-c", "write -P 90 3M 2M", "-c", "flush", "-c", "read -P 90 3M 2M"];
        // TLS 1.2 as well.
        qemu("qemu-io", &[], priority, &write);

        // nbdkit is a client here, and the server of nbdcopy.
        must(
            tool("nbdkit")
                .args(["-U", "-", "nbd", &format!("uri={}", self::uri(&daemon))])
                .arg(format!("tls-certificates={}", certificates.display()))
                .arg("--run")
                .arg(format!("nbdcopy \"$uri\" {}", copy.display())),
        );
        content[3 << 20..5 << 20].fill(90);
        assert!(std::fs::read(&copy).expect("a copy") == content, "what QEMU wrote is there");
        daemon.stop();
        let log = log(directory);
        // nbdkit, which is killed when its command has ended, may do without a close_notify.
        assert!(!log.contains("a client is refused"), "{log}");
    });
}

/// The kernel's client has TLS 1.2 only; it lists exports without a device of the kernel.
#[test]
fn client_of_the_kernel_lists_exports_inside_tls() {
    let test = "client_of_the_kernel_lists_exports_inside_tls";
    if !have(test, &["certtool", "nbd-client"]) {
        return;
    }
    let scratch = scratch();
    let directory = scratch.path();
    let ours = certificates(&directory.join("tls"), &[]);
    let daemon = serve("pool", directory, &["--tls-verify-peer", "--tls-dir", text(&ours)]);
    let port = port(&daemon);
    let list = |files: &[&str]| {
        let mut command = tool("nbd-client");
        command.args(["-l", "localhost", &port]).args(files).current_dir(&ours);
        command.output().expect("nbd-client runs")
    };
    let own = ["-certfile", "client-cert.pem", "-keyfile", "client-key.pem"];
    let named = ["-cacertfile", "ca-cert.pem", "-tlshostname", "localhost"];
    let listed = list(&[own, named].concat());
    let said = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(said.contains("disk0.img"), "{said}{}", stderr(&listed));
    let refused = list(&[]);
    assert!(!String::from_utf8_lossy(&refused.stdout).contains("disk0.img"));
    logged(directory, "the client does not use TLS, which is required here");
    daemon.stop();
}

/// Every refusal of a client is one line of the log, with its address and the reason.
#[test]
fn clients_that_may_not_in_are_refused_and_logged_once() {
    let test = "clients_that_may_not_in_are_refused_and_logged_once";
    if !have(test, &["certtool", "nbdinfo"]) {
        return;
    }
    let scratch = scratch();
    let directory = scratch.path();
    let ours = certificates(&directory.join("tls"), &[]);
    let expired = validity("2020-01-01", "2020-01-02");
    let expired = [("expiration_days = 730", expired.as_str())];
    let strangers = certificates(&directory.join("strangers"), &[]);
    let client = |name: &str, from: &Path, files: &[&str]| {
        let directory = of_client(&ours, &directory.join(name), &["ca-cert.pem"]);
        for file in files {
            std::fs::copy(from.join(file), directory.join(file)).expect("a copy");
        }
        directory
    };
    let own = ["client-cert.pem", "client-key.pem"];
    let nobody = client("nobody", &ours, &[]);
    let stranger = client("stranger", &strangers, &own);
    let friend = client("friend", &ours, &own);
    let signed = certificates_of(&directory.join("signed"), &expired, Some(&ours));
    let late = client("late", &signed, &own);
    let server = client("server", &ours, &[]);
    for (file, name) in own.iter().zip(["server-cert.pem", "server-key.pem"]) {
        std::fs::copy(ours.join(name), server.join(file)).expect("a copy");
    }
    let files = ["server-cert.pem", "server-key.pem", "ca-cert.pem"].map(|name| ours.join(name));
    let [certificate, key, authority] = files.each_ref().map(|path| text(path));
    let options =
        ["--tls-certificate", certificate, "--tls-key", key, "--tls-client-ca", authority];
    let daemon = serve("pool", directory, &options);
    for (who, words) in [
        (&nobody, "the client shows no certificate, and one is required"),
        (&stranger, "the client's certificate is not signed by an authority that is accepted here"),
        (&late, "the client's certificate expired on 2020-01-0"),
        (&server, "the client's certificate is not for clients"),
    ] {
        let refused = info(&uri_for(&daemon, who));
        assert!(!refused.status.success(), "{words}");
        assert!(stderr(&refused).contains("TLS fatal alert"), "{words}: {}", stderr(&refused));
        let line = logged(directory, words);
        assert!(line.contains("WARN") && line.contains("from=\"127.0.0.1:"), "{line}");
    }
    let plain = info(&uri(&daemon).replace("nbds:", "nbd:"));
    assert!(!plain.status.success());
    logged(directory, "the client does not use TLS, which is required here");
    must(tool("nbdinfo").arg(uri_for(&daemon, &friend)));
    // Unix sockets have their rights.
    must(tool("nbdinfo").arg(daemon.uri("disk0.img")));
    daemon.stop();
    let log = log(directory);
    assert_eq!(log.matches("a client is refused").count(), 5, "{log}");
}

/// A client that does not trust the server leaves in the handshake; the log says so.
#[test]
fn server_of_another_name_or_authority_is_refused_by_clients() {
    let test = "server_of_another_name_or_authority_is_refused_by_clients";
    if !have(test, &["certtool", "nbdinfo", "qemu-img"]) {
        return;
    }
    let scratch = scratch();
    let directory = scratch.path();
    let elsewhere = [("dns_name = \"localhost\"\n", ""), ("ip_address = \"127.0.0.1\"\n", "")];
    let ours = certificates(&directory.join("tls"), &elsewhere);
    let strangers = certificates(&directory.join("strangers"), &[]);
    let daemon = serve("pool", directory, &["--tls-dir", text(&ours)]);
    for (number, client) in [&ours, &strangers].into_iter().enumerate() {
        let refused = info(&uri_for(&daemon, client));
        assert!(!refused.status.success(), "{client:?}");
        while log(directory).matches("a client is refused").count() <= number {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
    let port = port(&daemon);
    let refused = tool("qemu-img")
        .args(["info", "--object"])
        .arg(format!("tls-creds-x509,id=tls0,dir={},endpoint=client", strangers.display()))
        .arg("--image-opts")
        .arg(format!("driver=nbd,host=localhost,port={port},export=disk0.img,tls-creds=tls0"))
        .output()
        .expect("qemu-img runs");
    assert!(!refused.status.success());
    daemon.stop();
    let log = log(directory);
    assert_eq!(log.matches("a client is refused").count(), 3, "{log}");
    for line in log.lines().filter(|line| line.contains("a client is refused")) {
        assert!(line.contains("accept the certificate of this server"), "{line}");
    }
}

/// A certificate that no client could use is refused before a device is opened, with the reason.
#[test]
fn unusable_certificates_and_unprotected_ports_are_refused_at_the_start() {
    let test = "unusable_certificates_and_unprotected_ports_are_refused_at_the_start";
    if !have(test, &["certtool", "openssl"]) {
        return;
    }
    let scratch = scratch();
    let directory = scratch.path();
    let good = certificates(&directory.join("tls"), &[]);
    let expired = validity("2020-01-01", "2020-01-02");
    let expired = [("expiration_days = 730", expired.as_str())];
    let expired = certificates(&directory.join("expired"), &expired);
    let later = validity("2150-01-01", "2151-01-01");
    let later = [("expiration_days = 730", later.as_str())];
    let later = certificates(&directory.join("later"), &later);
    let with_keys = |name: &str, kind: &str| {
        let changes = [("--key-type ed25519", kind)];
        certificates(&directory.join(name), &changes)
    };
    let rsa = with_keys("rsa", "--key-type rsa --bits 2048");
    let elliptic = with_keys("elliptic", "--key-type ecdsa");
    // certtool writes some such keys with a zero in front, which are refused with this advice.
    let usual = "openssl pkcs8 -topk8 -nocrypt -in server-key.pem -out NEW-KEY
        mv NEW-KEY server-key.pem";
    must(tool("sh").args(["-ec", usual]).current_dir(&elliptic));
    let other = certificates(&directory.join("other"), &[]);
    let empty = directory.join("empty");
    std::fs::write(&empty, "nothing").expect("room");
    let locked = directory.join("locked.pem");
    must(
        tool("openssl")
            .args(["pkcs8", "-topk8", "-passout", "pass:x", "-in"])
            .arg(good.join("server-key.pem"))
            .arg("-out")
            .arg(&locked),
    );
    let (cache, backings) = make_set(directory, &[16], &[]);
    let [certificate, key] = ["server-cert.pem", "server-key.pem"].map(|name| good.join(name));
    let (certificate, key) = (text(&certificate), text(&key));
    let [other_key, client_certificate] =
        [other.join("server-key.pem"), good.join("client-cert.pem")];
    let client_key = good.join("client-key.pem");
    let start = |options: &[&str]| {
        let options = [&["--nbd", "tcp:127.0.0.1:0"][..], options].concat();
        Daemon::try_start("pool", directory, &cache, &backings, &options)
    };
    let pair = |certificate: &str, key: &str| {
        ["--tls-certificate", certificate, "--tls-key", key].map(str::to_owned).to_vec()
    };
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    for (options, found) in [
        (words(&[]), "encrypt it: --tls-dir DIR"),
        (words(&[]), "--insecure-tcp"),
        (
            words(&["--tls-dir", "/nowhere"]),
            "/nowhere/server-cert.pem: can't read it: No such file",
        ),
        (words(&["--tls-dir", text(&expired)]), "the certificate expired on 2020-01-0"),
        (words(&["--tls-dir", text(&later)]), "the certificate is valid only from 2150-01-01"),
        (words(&["--tls-dir", text(&good), "--insecure-tcp"]), "one of the two"),
        (words(&["--tls-verify-peer"]), "--tls-verify-peer: no authority is given"),
        (words(&["--tls-key", key]), "--tls-key: its certificate is missing"),
        (words(&["--tls-certificate", certificate]), "--tls-certificate: its key is missing"),
        (words(&["--tls-client-ca", certificate]), "the server has no certificate of its own"),
        (pair(text(&empty), key), "there is no certificate in it"),
        (pair(certificate, text(&empty)), "there is no private key in it"),
        (pair(certificate, text(&locked)), "the private key is encrypted"),
        (pair(key, key), "there is no certificate in it"),
        (pair(certificate, text(&other_key)), "the key does not belong to"),
        (pair(text(&client_certificate), text(&client_key)), "the certificate is not for servers"),
    ] {
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let Err((status, said)) = start(&options) else { panic!("{options:?} are taken") };
        assert_eq!(status.code(), Some(2), "{options:?}: {said}");
        assert!(said.contains(found), "{options:?}: {said}");
    }
    let log_before = log(directory);
    assert!(!log_before.contains("was attached"), "nothing was opened: {log_before}");

    for usable in [&good, &rsa, &elliptic] {
        let key = usable.join("server-key.pem");
        let mut rights = std::fs::metadata(&key).expect("a key").permissions();
        rights.set_mode(0o644);
        std::fs::set_permissions(&key, rights).expect("the owner may");
        let Ok(daemon) = start(&["--tls-dir", text(usable)]) else { panic!("{usable:?}") };
        daemon.stop();
    }
    let log = log(directory);
    assert_eq!(log.matches("can read the private key (mode 0644)").count(), 3, "{log}");
    let Ok(daemon) = start(&["--insecure-tcp"]) else { panic!("it is wanted") };
    assert!(daemon.greeting.iter().any(|line| line.contains(" nbd://127.0.0.1:")));
    daemon.stop();
    logged(directory, "TCP without TLS (--insecure-tcp)");
}

/// Connects and asks for TLS; returns the socket behind the acknowledgement.
fn ask_for_tls(address: &str, behind: &[u8]) -> TcpStream {
    let mut socket = TcpStream::connect(address).expect("connected");
    let mut greeting = [0; 18];
    socket.read_exact(&mut greeting).expect("a greeting");
    assert_eq!(greeting, NBDMAGIC);
    let message = [&CLIENT_FLAGS, STARTTLS, behind].concat();
    socket.write_all(&message).expect("connected");
    socket
}

/// Bytes that the server sends until it closes the connection.
fn rest(mut socket: TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = socket.read(&mut buffer) {
        bytes.extend(&buffer[..count]);
    }
    bytes
}

/// Whatever comes in place of a handshake ends the connection, and the others are served.
#[test]
fn garbage_silence_and_words_in_the_clear_end_their_own_connection() {
    let test = "garbage_silence_and_words_in_the_clear_end_their_own_connection";
    if !have(test, &["certtool", "nbdinfo"]) {
        return;
    }
    let scratch = scratch();
    let directory = scratch.path();
    let ours = certificates(&directory.join("tls"), &[]);
    let daemon = serve("pool", directory, &["--tls-dir", text(&ours)]);
    let address = address(&daemon);
    let acknowledged = |socket: &mut TcpStream| {
        let mut reply = [0; 20];
        socket.read_exact(&mut reply).expect("an acknowledgement");
        assert_eq!(reply[8..16], [0, 0, 0, 5, 0, 0, 0, 1]);
    };
    // Begun first: the time limit runs for all of them together.
    let mut silent = ask_for_tls(&address, &[]);
    acknowledged(&mut silent);
    let mut half = ask_for_tls(&address, &[]);
    acknowledged(&mut half);
    half.write_all(&[22, 3, 1, 1, 0, 1]).expect("connected");

    let mut random = vec![0; 70_000];
    pseudo_random(3, &mut random);
    for garbage in [&b"GET / HTTP/1.0\r\n\r\n"[..], STARTTLS, &[22, 3, 1, 0, 0], &random] {
        let mut socket = ask_for_tls(&address, &[]);
        acknowledged(&mut socket);
        // The server may hang up before all of it has come.
        let _ = socket.write_all(garbage);
        let _ = socket.shutdown(std::net::Shutdown::Write);
        let said = rest(socket);
        assert!(said.len() < 64, "an alert at most: {said:?}");
    }
    // An attacker on the way puts an option behind the client's request for TLS.
    let go = b"IHAVEOPT\0\0\0\x07\0\0\0\x06\0\0\0\0\0\0";
    assert_eq!(rest(ask_for_tls(&address, go)), b"");
    logged(directory, "bytes in the clear came behind the request for TLS");

    must(tool("nbdinfo").arg(uri_for(&daemon, &ours)));
    assert_eq!(rest(silent), b"");
    assert_eq!(rest(half), b"");
    // The log is written by another thread.
    while log(directory).matches("it has not chosen an export within 10 s").count() < 2 {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    logged(directory, "the client sends something that is not TLS");
    daemon.stop();
}

/// The end of a client that was killed is one line, which says that it was cut off; what it was
/// acknowledged is there.
#[test]
fn client_that_is_killed_is_logged_as_cut_off() {
    let test = "client_that_is_killed_is_logged_as_cut_off";
    if !have(test, &["certtool", "nbdinfo", "nbdsh"]) {
        return;
    }
    let scratch = scratch();
    let directory = scratch.path();
    let ours = certificates(&directory.join("tls"), &[]);
    let daemon = serve("pool", directory, &["--tls-dir", text(&ours)]);
    let kill = format!(
        "
import os
h.set_uri_allow_local_file(True)
h.connect_uri({:?})
h.pwrite(b'x' * 512, 0)
os.kill(os.getpid(), 9)
",
        uri_for(&daemon, &ours)
    );
    let mut command = std::process::Command::new("env");
    let killed = command.args(["PATH=/usr/bin:/bin", "nbdsh", "-c", &kill]).output();
    let killed = killed.expect("env runs");
    if stderr(&killed).contains("No module named") {
        return skipped(test, "no libnbd for Python");
    }
    assert_eq!(killed.status.code(), None, "{}", stderr(&killed));
    let line = logged(directory, "the client had not announced its end (close_notify)");
    assert!(line.contains("INFO") && line.contains("export=\"disk0.img\""), "{line}");
    let mut sector = [0; 512];
    daemon.client("disk0.img").read(0, &mut sector).expect("it is served");
    assert_eq!(sector, [b'x'; 512]);
    daemon.stop();
    assert_eq!(log(directory).matches("close_notify").count(), 1);
}

/// A client that stops inside a record holds memory for its rest: it is sent away, whereas one
/// that is idle may stay.
#[test]
fn client_that_stops_inside_a_record_is_sent_away() {
    let test = "client_that_stops_inside_a_record_is_sent_away";
    if !have(test, &["certtool", "nbdsh"]) {
        return;
    }
    let scratch = scratch();
    let directory = scratch.path();
    let ours = certificates(&directory.join("tls"), &[]);
    let daemon = serve("pool", directory, &["--tls-dir", text(&ours)]);
    // The Python that nbdsh runs on has TLS, and lets a record be cut.
    let script = r#"
import socket, ssl, struct
host, port = ADDRESS.rsplit(":", 1)
plain = socket.create_connection((host, int(port)))
assert plain.recv(18, socket.MSG_WAITALL) == b"NBDMAGICIHAVEOPT\0\3"
plain.sendall(struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 5, 0))
plain.recv(20, socket.MSG_WAITALL)
context = ssl.create_default_context(cafile=CA)
incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
def step(call):
    while True:
        try:
            done = call()
            plain.sendall(outgoing.read())
            return done
        except ssl.SSLWantReadError:
            plain.sendall(outgoing.read())
            got = plain.recv(4096)
            if not got:
                raise EOFError
            incoming.write(got)
step(tls.do_handshake)
step(lambda: tls.write(b"IHAVEOPT" + struct.pack(">IIIH", 7, 6, 0, 0)))
reply = b""
while struct.pack(">III", 7, 1, 0) not in reply:
    reply += step(lambda: tls.read(4096))
tls.write(struct.pack(">IHHQQI", 0x25609513, 0, 0, 7, 0, 512))
record = outgoing.read()
plain.sendall(record[:20])
try:
    while True:
        step(lambda: tls.read(4096))
except (EOFError, ssl.SSLError, ConnectionResetError):
    pass
"#;
    let (address, authority) = (address(&daemon), ours.join("ca-cert.pem"));
    let script = script
        .replace("ADDRESS", &format!("{address:?}"))
        .replace("CA)", &format!("{:?})", text(&authority)));
    let mut command = std::process::Command::new("env");
    let said = command.args(["PATH=/usr/bin:/bin", "python3", "-c", &script]).output();
    let said = said.expect("env runs");
    assert!(said.status.success(), "{}", stderr(&said));
    logged(directory, "it has sent a part of a TLS record, and nothing more for 30 s");
    assert!(log(directory).contains("client connected"), "it had chosen an export");
    daemon.stop();
}

/// SIGHUP lets new connections use new certificates; files that can't be used change nothing.
#[test]
fn certificates_are_read_again_at_a_hang_up() {
    let test = "certificates_are_read_again_at_a_hang_up";
    if !have(test, &["certtool", "nbdinfo"]) {
        return;
    }
    let scratch = scratch();
    let directory = scratch.path();
    let ours = certificates(&directory.join("tls"), &[]);
    let old = of_client(&ours, &directory.join("old"), &["ca-cert.pem"]);
    let new = certificates(&directory.join("new"), &[]);
    let daemon = serve("pool", directory, &["--tls-dir", text(&ours)]);
    let hang_up = || must(tool("kill").arg("-HUP").arg(daemon.id().to_string()));
    must(tool("nbdinfo").args(["--size", &uri_for(&daemon, &old)]));
    std::fs::copy(new.join("server-key.pem"), ours.join("server-key.pem")).expect("a copy");
    hang_up();
    let line = logged(directory, "certificates were not read again, those before stay");
    assert!(line.contains("the key does not belong to"), "{line}");
    must(tool("nbdinfo").args(["--size", &uri_for(&daemon, &old)]));
    std::fs::copy(new.join("server-cert.pem"), ours.join("server-cert.pem")).expect("a copy");
    hang_up();
    logged(directory, "certificates were read again");
    must(tool("nbdinfo").args(["--size", &uri_for(&daemon, &new)]));
    assert!(!info(&uri_for(&daemon, &old)).status.success(), "another authority");
    daemon.stop();
}

/// A server of a backing device, on a unix socket.
struct Server(std::process::Child);

impl Server {
    fn start(socket: &Path, disk: &Path, options: &[&str]) -> Server {
        let _ = std::fs::remove_file(socket);
        let mut command = tool("nbdkit");
        command.args(["-f", "-U", text(socket)]).args(options).args(["file", text(disk)]);
        let mut server = Server(command.spawn().expect("nbdkit runs"));
        while !socket.exists() {
            let ended = server.0.try_wait().expect("a child can be waited for");
            assert!(ended.is_none(), "{ended:?}");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `ubcache show` of a disk that can't be reached; its message.
fn not_shown(uri: &str) -> String {
    let output = support::ubcache().arg("show").arg(uri).output().expect("ubcache runs");
    assert!(!output.status.success(), "{uri}");
    stderr(&output)
}

#[test]
fn a_backing_device_is_reached_by_tls() {
    let test = "a_backing_device_is_reached_by_tls";
    if !have(test, &["certtool", "nbdkit"]) {
        return;
    }
    each_io(test, |io, directory| {
        let ours = certificates(&directory.join("pki"), &[]);
        let (disk, cache) = (directory.join("disk.img"), directory.join("cache.img"));
        support::sparse(&disk, 16 << 20);
        support::sparse(&cache, 64 << 20);
        let socket = directory.join("server.sock");
        let certificates = format!("--tls-certificates={}", ours.display());
        let options = ["--tls=require", "--tls-verify-peer", &certificates];
        let server = Server::start(&socket, &disk, &options);
        let at = format!("///?socket={}", socket.display());
        let known = format!("&tls-certificates={}", ours.display());
        let uri = format!("nbds+unix:{at}{known}&tls-hostname=localhost");
        let mut make = support::ubcache();
        make.arg("make").arg("-C").arg(&cache).args(["--bucket", "64k", "--label", "data", "-B"]);
        must(make.arg(&uri));
        let daemon = Daemon::start(io, directory, &cache, &[uri.clone().into()], &[]);
        let mut data = vec![0; 1 << 20];
        pseudo_random(7, &mut data);
        let mut client = daemon.client("data");
        client.write(0, &data, true).expect("a write");
        drop(server);
        let server = Server::start(&socket, &disk, &options);
        client.write(1 << 20, &data, true).expect("a write, when the server is back");
        daemon.stop();
        let content = std::fs::read(&disk).expect("the disk");
        assert!(
            content[8192..][..1 << 20] == data && content[8192 + (1 << 20)..][..1 << 20] == data
        );

        // Refusals, each with its reason.
        let said = not_shown(&format!("nbd+unix:{at}"));
        assert!(said.contains("demands TLS") && said.contains("nbds"), "{said}");
        let said = not_shown(&format!("nbds+unix:{at}{known}&tls-hostname=elsewhere"));
        assert!(said.contains("for another name"), "{said}");
        let stranger = of_client(&ours, &directory.join("stranger"), &["ca-cert.pem"]);
        let strange = format!("&tls-certificates={}", stranger.display());
        let said = not_shown(&format!("nbds+unix:{at}{strange}&tls-hostname=localhost"));
        assert!(said.contains("certificate"), "{said}");
        let said = not_shown(&format!("nbds+unix:{at}&tls-certificates=/nowhere"));
        assert!(said.contains("/nowhere/ca-cert.pem"), "{said}");
        drop(server);
        let _plain = Server::start(&socket, &disk, &[]);
        let said = not_shown(&uri);
        assert!(said.contains("has no TLS"), "{said}");
    });
}
