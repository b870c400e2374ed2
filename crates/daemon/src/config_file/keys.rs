//! Every key of a configuration file. docs/reference/config.md has the same table, which a test
//! compares.

use super::kind::Kind;

/// Table of a file.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Table {
    /// Keys at the top: the set.
    Set,
    /// `[tls]`: encryption of TCP.
    Tls,
    /// `[limits]`: limits on the clients of the set.
    Limits,
    /// `[[volume]]`: a backing device and its export.
    Volume,
    /// `[volume.limits]`: limits on the clients of an export.
    VolumeLimits,
}

/// Effect of a changed value on a set that runs.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Applied {
    /// `config apply` changes it.
    Live,
    /// `config apply` changes it for clients that connect from then on.
    NewConnections,
    /// It holds from the next start of the daemon.
    Restart,
}

impl Applied {
    /// The word of documents.
    pub const fn word(self) -> &'static str {
        match self {
            Applied::Live => "live",
            Applied::NewConnections => "new connections",
            Applied::Restart => "restart",
        }
    }
}

/// A key.
#[derive(Copy, Clone, Debug)]
pub struct Key {
    /// Its table.
    pub table: Table,
    /// Its name.
    pub name: &'static str,
    /// Its kind, with the range.
    pub kind: Kind,
    /// The value without it, as it is written in a file, or in words.
    pub default: &'static str,
    /// If a changed value takes effect.
    pub applied: Applied,
}

/// Words for modes of caching.
pub const MODES: &[&str] = &["writethrough", "writeback", "writearound", "none"];

const DAY: u64 = 86_400_000_000;
const MIB: u64 = 1 << 20;

const fn key(
    table: Table,
    name: &'static str,
    kind: Kind,
    default: &'static str,
    applied: Applied,
) -> Key {
    Key { table, name, kind, default, applied }
}

/// All keys, in the order of documents.
pub const KEYS: &[Key] = &[
    key(Table::Set, "cache", Kind::Device, "required", Applied::Restart),
    key(Table::Set, "mode", Kind::Word(MODES), "as the superblock says", Applied::Live),
    key(Table::Set, "nbd", Kind::Addresses, "unix:/run/ubcache/SET.nbd", Applied::Restart),
    key(Table::Set, "read_only", Kind::Switch, "false", Applied::Restart),
    key(Table::Set, "cache_optional", Kind::Switch, "false", Applied::Restart),
    key(Table::Set, "keep_clean", Kind::Switch, "false", Applied::Restart),
    key(Table::Set, "socket_mode", Kind::Permissions, "\"0600\"", Applied::Restart),
    key(Table::Set, "socket_group", Kind::Group, "that of the daemon", Applied::Restart),
    key(Table::Set, "allow", Kind::Networks, "all networks", Applied::Restart),
    key(Table::Set, "insecure_tcp", Kind::Switch, "false", Applied::Restart),
    key(Table::Set, "index_memory", Kind::Size(MIB), "\"384M\"", Applied::Restart),
    key(Table::Set, "busy_poll", Kind::Time(1_000_000), "\"100us\"", Applied::Restart),
    key(Table::Set, "threads", Kind::Number(1, 64), "1", Applied::Restart),
    key(Table::Set, "trust_discards", Kind::Switch, "false", Applied::Restart),
    key(Table::Set, "page_cache", Kind::Word(PAGE_CACHE), "\"never\"", Applied::Restart),
    key(Table::Set, "drain_timeout", Kind::Time(DAY), "\"10s\"", Applied::Restart),
    key(Table::Set, "ublk_without", Kind::Abilities, "none", Applied::Restart),
    key(Table::Set, "ublk_require", Kind::Abilities, "none", Applied::Restart),
    key(Table::Set, "attributes", Kind::Attributes, "those of the devices", Applied::Live),
    key(Table::Set, "limits", Kind::Table, "", Applied::Restart),
    key(Table::Set, "tls", Kind::Table, "TCP needs insecure_tcp", Applied::Restart),
    key(Table::Set, "volume", Kind::Tables, "required", Applied::Live),
    key(Table::Tls, "directory", Kind::Path, "none", Applied::Restart),
    key(Table::Tls, "certificate", Kind::Path, "server-cert.pem in directory", Applied::Restart),
    key(Table::Tls, "key", Kind::Path, "server-key.pem in directory", Applied::Restart),
    key(Table::Tls, "client_ca", Kind::Path, "none", Applied::Restart),
    key(Table::Tls, "verify_peer", Kind::Switch, "false", Applied::Restart),
    key(Table::Limits, "client_memory", Kind::Size(MIB), "\"256M\"", Applied::Restart),
    key(Table::Limits, "max_connections", AT_LEAST_ONE, "256", Applied::Restart),
    key(Table::Limits, "iops", AT_LEAST_ONE, "none", Applied::NewConnections),
    key(Table::Limits, "bytes", Kind::Size(4096), "none", Applied::NewConnections),
    key(Table::Limits, "client_iops", AT_LEAST_ONE, "none", Applied::Restart),
    key(Table::Limits, "client_bytes", Kind::Size(4096), "none", Applied::Restart),
    key(Table::Volume, "name", Kind::Text, "required", Applied::Live),
    key(Table::Volume, "backing", Kind::Device, "required", Applied::Restart),
    key(Table::Volume, "header", Kind::Path, "looked for", Applied::Restart),
    key(Table::Volume, "adopt", Kind::Switch, "false", Applied::Restart),
    key(Table::Volume, "optional", Kind::Switch, "false", Applied::Restart),
    key(Table::Volume, "mode", Kind::Word(MODES), "that of the set", Applied::Live),
    key(Table::Volume, "export", Kind::Exports, "\"nbd\"", Applied::Restart),
    key(Table::Volume, "read_only", Kind::Switch, "false", Applied::Restart),
    key(Table::Volume, "attributes", Kind::Attributes, "those of the set", Applied::Live),
    key(Table::Volume, "limits", Kind::Table, "", Applied::NewConnections),
    key(Table::VolumeLimits, "iops", AT_LEAST_ONE, "that of the set", Applied::NewConnections),
    key(Table::VolumeLimits, "bytes", Kind::Size(4096), "that of the set", Applied::NewConnections),
];

const AT_LEAST_ONE: Kind = Kind::Number(1, u64::MAX);
const PAGE_CACHE: &[&str] = &["never", "needed", "always"];

/// The keys of a table.
pub fn of_table(table: Table) -> impl Iterator<Item = &'static Key> {
    KEYS.iter().filter(move |key| key.table == table)
}

/// A key by its name.
pub fn find(table: Table, name: &str) -> Option<&'static Key> {
    of_table(table).find(|key| key.name == name)
}

/// The known name that is most like a given one, if one is.
pub fn nearest<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    const LIKENESS_MIN: f64 = 0.7;
    let given = given.to_ascii_lowercase().replace('-', "_");
    let likeness = |name: &str| strsim::jaro_winkler(&given, name);
    known
        .into_iter()
        .map(|name| (likeness(name), name))
        .filter(|(likeness, _)| *likeness >= LIKENESS_MIN)
        .max_by(|one, other| one.0.total_cmp(&other.0))
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows that no key has, and keys that no row has, would both mislead.
    #[test]
    fn the_reference_has_the_kind_default_and_effect_of_every_key() {
        let text = include_str!("../../../../docs/reference/config.md");
        let headings = [
            (Table::Set, "### The set\n"),
            (Table::Tls, "### `[tls]`\n"),
            (Table::Limits, "### `[limits]`\n"),
            (Table::Volume, "### `[[volume]]`\n"),
            (Table::VolumeLimits, "### `[volume.limits]`\n"),
        ];
        for (table, heading) in headings {
            let section = text.split(heading).nth(1).expect("a section of the reference");
            let section = section.split("\n#").next().unwrap_or_default();
            let rows: Vec<&str> = section.lines().filter(|line| line.starts_with("| `")).collect();
            let expected: Vec<String> = of_table(table)
                .map(|key| {
                    let Key { name, kind, default, applied, .. } = key;
                    format!("| `{name}` | {kind} | {default} | {} | ", applied.word())
                })
                .collect();
            let same = rows.len() == expected.len()
                && rows.iter().zip(&expected).all(|(row, begin)| row.starts_with(begin.as_str()));
            assert!(
                same,
                "{table:?}: rows begin with\n{}\nfound\n{}",
                expected.join("\n"),
                rows.join("\n")
            );
        }
    }

    #[test]
    fn nearest_key_is_the_one_that_was_meant() {
        let names = || of_table(Table::Set).map(|key| key.name);
        for (given, meant) in [
            ("cacche", "cache"),
            ("drain-timeout", "drain_timeout"),
            ("volumes", "volume"),
            ("index_mem", "index_memory"),
            ("readonly", "read_only"),
        ] {
            assert_eq!(nearest(given, names()), Some(meant), "{given}");
        }
        assert_eq!(nearest("zzz", names()), None);
    }
}
