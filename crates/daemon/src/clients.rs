//! Limits on clients: their number and memory, their pace, and the time for which one may keep
//! something from the others.

use std::rc::Rc;

use ubcache_env::Nanos;
use ubcache_host::descriptors;
use ubcache_nbd::{Pace, Rates, Silence};

use crate::failure::Failure;
use crate::size::show_size;

/// Descriptors that are kept back for the control socket, and for what the daemon opens itself.
const RESERVED_DESCRIPTORS: u64 = 32;

/// The period at which connections are looked at.
pub(crate) const LOOK_PERIOD: Nanos = Nanos::from_secs(1);
/// Time for clients that are about to read their replies, before somebody else goes on with them.
pub(crate) const READING_PATIENCE: Nanos = Nanos::from_millis(50);
/// Looks after which a client that has not chosen an export is sent away.
const NEGOTIATION_LOOKS: u32 = 10;
/// Looks after which a client is sent away that has sent a part of a message, or that holds memory
/// which others wait for.
const SILENT_LOOKS: u32 = 30;
/// Looks after which the connection of a client that has gone is ended.
const GONE_LOOKS: u32 = 2;

/// Limits on clients, as configured.
#[derive(Clone, Debug)]
pub struct ClientLimits {
    /// Bytes of requests and replies that all clients have together.
    pub memory: u64,
    /// Connections at a time.
    pub connections: u64,
    /// Requests and bytes a second of each connection.
    pub each: Rates,
    /// Requests and bytes a second of an export, by its name; without one, of every export.
    pub exports: Vec<(Option<String>, Rates)>,
}

impl Default for ClientLimits {
    fn default() -> ClientLimits {
        ClientLimits {
            memory: 256 << 20,
            connections: 256,
            each: Rates::default(),
            exports: Vec::new(),
        }
    }
}

impl ClientLimits {
    /// The limits of an export: what names it comes before what is for all.
    pub(crate) fn of_export(&self, name: &str) -> Rates {
        let mut rates = Rates::default();
        let named = |wanted: bool| {
            self.exports
                .iter()
                .filter(move |(of, _)| of.is_some() == wanted)
                .filter(|(of, _)| of.as_deref().is_none_or(|of| of == name))
        };
        for (_, given) in named(false).chain(named(true)) {
            rates.requests = given.requests.or(rates.requests);
            rates.bytes = given.bytes.or(rates.bytes);
        }
        rates
    }

    /// Refuses limits of exports that there are not.
    pub(crate) fn check_names(&self, names: &[String]) -> Result<(), Failure> {
        let unknown =
            self.exports.iter().find_map(|(of, _)| of.as_ref().filter(|of| !names.contains(of)));
        unknown.map_or(Ok(()), |unknown| {
            Err(Failure::usage(
                "--limit-iops or --limit-bytes",
                format_args!("there is no export \"{unknown}\""),
            )
            .expected(format_args!("one of {}, or no name for all", names.join(", "))))
        })
    }

    /// The pace of one more connection.
    pub(crate) fn pace(&self) -> Option<Rc<Pace>> {
        Pace::new(self.each)
    }
}

/// Connections that there may be: as many as configured, and as descriptors allow.
pub(crate) fn connections_max(wanted: u64) -> u64 {
    let limit = descriptors::raise_limit();
    let (Ok(limit), Ok(open)) = (limit, descriptors::open_now()) else { return wanted };
    let possible = limit.saturating_sub(open + RESERVED_DESCRIPTORS).max(1);
    if possible < wanted {
        tracing::warn!(
            wanted,
            possible,
            limit,
            "the limit on open files allows fewer connections than --max-connections: raise it \
             (`ulimit -Hn`, LimitNOFILE= in the systemd unit)"
        );
    }
    wanted.min(possible)
}

/// The reason to send a client away, if there is one. `short`: others wait for memory.
pub(crate) fn reason_to_end(silence: Silence, short: bool) -> Option<&'static str> {
    let Silence { negotiation, message, payload, replies } = silence;
    if negotiation >= NEGOTIATION_LOOKS {
        Some("it has not chosen an export within 10 s")
    } else if message >= SILENT_LOOKS {
        Some("it has sent a part of a request, and nothing more for 30 s")
    } else if short && payload >= SILENT_LOOKS {
        Some("it has been sending one request for 30 s, and others wait for its memory")
    } else if short && replies >= SILENT_LOOKS {
        Some("it has read no reply for 30 s, and others wait for its memory")
    } else {
        None
    }
}

/// The reason to send a client away that has been silent inside a TLS record for so many looks.
pub(crate) fn reason_to_end_tls(silent: u32) -> Option<&'static str> {
    (silent >= SILENT_LOOKS)
        .then_some("it has sent a part of a TLS record, and nothing more for 30 s")
}

/// The reason to end a connection whose client has gone, as so many looks have found. It ends by
/// itself at once, unless requests of it still wait: for memory, or for their turn.
pub(crate) fn reason_to_end_gone(looks: u32) -> Option<&'static str> {
    (looks >= GONE_LOOKS).then_some("it has closed the connection, and its requests were waiting")
}

/// Reads `[NAME=]VALUE`.
pub fn split_limit(text: &str) -> (Option<String>, &str) {
    match text.rsplit_once('=') {
        Some((name, value)) => (Some(name.to_owned()), value),
        None => (None, text),
    }
}

/// Refuses a limit of zero, which would be a client that is never served.
pub fn above_zero(value: u64, least: u64) -> Result<u64, String> {
    if value >= least {
        return Ok(value);
    }
    Err(format!("{} is too little, expected at least {}", show_size(value), show_size(least)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(requests: Option<u64>, bytes: Option<u64>) -> Rates {
        Rates { requests, bytes }
    }

    #[test]
    fn limit_with_a_name_comes_before_that_of_all() {
        let exports = vec![
            (Some("a".to_owned()), rates(Some(5), None)),
            (None, rates(Some(9), None)),
            (None, rates(None, Some(1 << 20))),
        ];
        let limits = ClientLimits { exports, ..ClientLimits::default() };
        assert_eq!(limits.of_export("a"), rates(Some(5), Some(1 << 20)));
        assert_eq!(limits.of_export("b"), rates(Some(9), Some(1 << 20)));
        assert!(limits.check_names(&["a".to_owned()]).is_ok());
        let refused = limits.check_names(&["b".to_owned()]).expect_err("there is no a");
        assert!(refused.to_string().contains("there is no export \"a\""), "{refused}");
    }

    #[test]
    fn client_is_sent_away_only_for_what_it_keeps_from_others() {
        let silence = |replies, payload, message, negotiation| Silence {
            negotiation,
            message,
            payload,
            replies,
        };
        assert_eq!(reason_to_end(silence(1000, 1000, 0, 0), false), None, "nobody waits");
        assert!(reason_to_end(silence(30, 0, 0, 0), true).is_some());
        assert!(reason_to_end(silence(0, 30, 0, 0), true).is_some());
        assert!(reason_to_end(silence(0, 0, 30, 0), false).is_some());
        assert!(reason_to_end(silence(0, 0, 0, 10), false).is_some());
        assert_eq!(reason_to_end(silence(29, 29, 29, 9), true), None);
    }
}
