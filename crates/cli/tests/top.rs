//! `ubcache top` in a terminal of its own: keys sort the table, and end it.
#![allow(
    clippy::disallowed_methods,
    reason = "tests live in the real world, with its clock and its threads"
)]

mod support;

use std::io::{Read, Write};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

use support::{Daemon, Guard, STAYS_DIRTY, have, make_set, scratch, text, ubcache};

/// A command in a terminal.
struct Terminal {
    keys: ChildStdin,
    output: ChildStdout,
    seen: String,
    command: Guard,
}

impl Terminal {
    /// Runs `ubcache top` in a terminal of 160 columns, which `script` makes.
    fn top(daemon: &Daemon) -> Terminal {
        let mut top: Command = ubcache();
        top.args(["top", "--interval", "3600", "--control"]).arg(&daemon.control);
        let words: Vec<String> = std::iter::once(top.get_program())
            .chain(top.get_args())
            .map(|word| format!("'{}'", word.to_str().expect("UTF-8")))
            .collect();
        let mut script = support::tool("script");
        script.env("TERM", "xterm").args(["--quiet", "--return", "--command"]);
        script.arg(format!("stty cols 160 rows 12; exec {}", words.join(" "))).arg("/dev/null");
        let mut child = script
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("script runs (apt-get install bsdutils)");
        let keys = child.stdin.take().expect("standard input is a pipe");
        let output = child.stdout.take().expect("standard output is a pipe");
        Terminal { keys, output, seen: String::new(), command: Guard(child) }
    }

    /// Reads what is drawn until that is in it, and forgets it.
    fn shows(&mut self, expected: &str) {
        let mut bytes = [0; 4096];
        while !without_styles(&self.seen).contains(expected) {
            let count = self.output.read(&mut bytes).expect("output");
            assert!(count > 0, "it ended before it showed {expected:?}: {:?}", self.seen);
            self.seen += &String::from_utf8_lossy(&bytes[..count]);
        }
        self.seen.clear();
    }

    fn press(&mut self, key: &str) {
        self.keys.write_all(key.as_bytes()).and_then(|()| self.keys.flush()).expect("a key");
    }
}

/// The text without bold, reversed and colours.
fn without_styles(text: &str) -> String {
    let mut parts = text.split("\x1b[");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(|c: char| !c.is_ascii_digit() && c != ';').unwrap_or(part.len());
        match part[end..].strip_prefix('m') {
            Some(rest) => plain += rest,
            None => plain += &format!("\x1b[{part}"),
        }
    }
    plain
}

#[test]
fn keys_sort_the_table_in_a_terminal_and_end_it() {
    if !have("keys_sort_the_table_in_a_terminal_and_end_it", &["script", "stty"]) {
        return;
    }
    let directory = scratch();
    let (cache, disks) = make_set(directory.path(), &[16, 16], &[]);
    let named = ["first", "other"].map(|name| name.to_owned() + "=");
    let named: Vec<String> =
        named.iter().zip(&disks).map(|(name, disk)| name.clone() + text(disk)).collect();
    let extra = [&STAYS_DIRTY[..], &["-B", &named[0], "-B", &named[1]]].concat();
    let daemon = Daemon::start("pool", directory.path(), &cache, &[], &extra);
    daemon.client("first").write(0, &[1; 4096], true).expect("a write");
    daemon.client("other").write(0, &[1; 1 << 20], true).expect("a write");

    let mut terminal = Terminal::top(&daemon);
    terminal.shows("quit");
    // Only what changes is drawn anew: the second line begins with the other volume.
    terminal.press("d");
    terminal.shows("\x1b[2;1Hother");
    terminal.press("d");
    terminal.shows("\x1b[2;1Hfirst");
    terminal.press("q");
    // The screen from before is back.
    terminal.shows("\x1b[?1049l");
    let status = terminal.command.0.wait().expect("a child can be waited for");
    assert!(status.success(), "top ended with {status}");
    daemon.stop();
}
