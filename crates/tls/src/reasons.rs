//! Reasons for a failed handshake, in words for the log.

use std::fmt;

use rustls::{AlertDescription, CertificateError, Error};

/// A moment, for people.
pub(crate) fn date(unix_seconds: u64) -> String {
    let (days, second) = (unix_seconds / 86_400, unix_seconds % 86_400);
    let (mut year, mut day) = (1970, days);
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let year_days = |year| if is_leap(year) { 366 } else { 365 };
    while day >= year_days(year) && year < 9999 {
        day -= year_days(year);
        year += 1;
    }
    let february = if is_leap(year) { 29 } else { 28 };
    let mut month = 1;
    for days in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if day < days {
            break;
        }
        day -= days;
        month += 1;
    }
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!("{year:04}-{month:02}-{:02} {hour:02}:{minute:02} UTC", day + 1)
}

/// The other side of a connection.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Peer {
    Client,
    Server,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Peer::Client => "client",
            Peer::Server => "server",
        })
    }
}

impl Peer {
    /// The likely reason of one that leaves without a word.
    pub(crate) fn may_refuse(self) -> &'static str {
        match self {
            Peer::Client => "it may not accept the certificate of this server",
            Peer::Server => {
                "it may want a certificate of this client, or not accept the one it has"
            }
        }
    }
}

/// The reason for a failure.
pub(crate) fn reason(error: &Error, peer: Peer) -> String {
    let this = if peer == Peer::Client { Peer::Server } else { Peer::Client };
    match error {
        Error::NoCertificatesPresented => {
            format!("the {peer} shows no certificate, and one is required")
        }
        Error::InvalidCertificate(fault) => of_certificate(fault, peer),
        Error::AlertReceived(AlertDescription::CertificateRequired) => {
            format!("the {peer} wants a certificate of this {this}")
        }
        Error::AlertReceived(alert) => match alert {
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnsupportedCertificate => format!(
                "the {peer} does not accept the certificate of this {this} (alert {alert:?})"
            ),
            alert => format!("the {peer} ends the handshake (alert {alert:?})"),
        },
        Error::InvalidMessage(error) => {
            format!("the {peer} sends something that is not TLS ({error:?})")
        }
        error => error.to_string(),
    }
}

fn of_certificate(fault: &CertificateError, peer: Peer) -> String {
    match fault {
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("the {peer}'s certificate expired on {}", date(not_after.as_secs()))
        }
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!("the {peer}'s certificate is valid only from {}", date(not_before.as_secs()))
        }
        CertificateError::UnknownIssuer => {
            format!("the {peer}'s certificate is not signed by an authority that is accepted here")
        }
        CertificateError::BadSignature => format!(
            "the {peer}'s certificate is not signed by an authority that is accepted here, though \
             by one of the same name; or the {peer} has not its key"
        ),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            format!("the {peer}'s certificate is for another name: {fault}")
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            format!("the {peer}'s certificate is not for {peer}s (extended key usage)")
        }
        fault => format!("the {peer}'s certificate is refused: {fault}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00 UTC"),
            (951_782_399, "2000-02-28 23:59 UTC"),
            (951_782_400, "2000-02-29 00:00 UTC"),
            (951_868_800, "2000-03-01 00:00 UTC"),
            (1_798_761_599, "2026-12-31 23:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00 UTC"),
        ] {
            assert_eq!(date(seconds), text);
        }
        assert!(date(u64::MAX).starts_with("9999-"), "no date is waited for");
    }
}
