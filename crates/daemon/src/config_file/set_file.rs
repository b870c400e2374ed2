//! A file as a set and its volumes.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};
use ubcache_env::Nanos;
use ubcache_host::{PageCache, SocketAccess};
use ubcache_nbd::Rates;
use ubcache_ublk::Features;

use super::attributes::{self, Owner};
use super::fault::{Fault, Place};
use super::keys::Table;
use super::kind::{found, quoted};
use super::reader::{Source, Values, table_of};
use crate::clients::ClientLimits;
use crate::config::{ExportWay, ReadOnly, ServeConfig};
use crate::tls::TlsOptions;
use crate::ublk::{UblkExport, UblkOptions};
use crate::vhost_user::VhostUserExport;

/// A set, as its file has it. Devices are not looked for yet.
#[derive(Clone, Debug)]
pub struct SetFile {
    /// The file.
    pub file: PathBuf,
    /// Name of the set: that of the file.
    pub name: String,
    /// The cache device as written, and where.
    pub cache: (String, Place),
    /// Place of the addresses for clients.
    pub nbd_place: Place,
    /// Everything but the devices.
    pub serve: ServeConfig,
    /// The volumes, in order.
    pub volumes: Vec<VolumeFile>,
    /// The values as given, by their keys as in `volume.data.attributes.label`.
    pub given: BTreeMap<String, String>,
}

/// A volume, as the file has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VolumeFile {
    /// Name of the export.
    pub name: String,
    /// The backing device as written, and where.
    pub backing: (String, Place),
    /// Its header, if the device has no superblock and the header is not looked for.
    pub header: Option<PathBuf>,
    /// It may be missing.
    pub optional: bool,
    /// Attributes of it alone, with its mode.
    pub settings: Vec<(String, String)>,
}

impl SetFile {
    /// Reads a file; all of its faults.
    pub fn parse(file: &Path, text: &str) -> Result<SetFile, Vec<Fault>> {
        let mut source = Source { file, text, faults: Vec::new() };
        let name = name_of(file);
        if let Err(why) = &name {
            source.faults.push(Fault::of_file(file, why));
        }
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            let place = error.span().unwrap_or(0..0);
            let message = error.message().replace('\n', ", ");
            source.fault(&place, format_args!("not TOML: {message}"));
        }
        let syntax_is_good = source.faults.is_empty();
        let read = read_set(&mut source, table.get_ref(), name.unwrap_or_default());
        if !syntax_is_good {
            // A missing key may be one that could not be read.
            source.faults.retain(|fault| !fault.what.ends_with(MISSING));
        }
        source.faults.sort();
        source.faults.dedup();
        match (read, source.faults.is_empty()) {
            (Some(set), true) => Ok(set),
            _ => Err(source.faults),
        }
    }
}

/// The end of messages about what is not there.
const MISSING: &str = "is missing";

fn name_of(file: &Path) -> Result<String, String> {
    let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    match stem.filter(|stem| stem.chars().all(plain) && !stem.starts_with('.')) {
        Some(name) => Ok(name),
        None => {
            Err("the name of the file is the name of the set: expected letters, digits, \".\", \
                     \"_\" and \"-\" before \".toml\""
                .to_owned())
        }
    }
}

fn read_set(source: &mut Source<'_>, table: &DeTable<'_>, name: String) -> Option<SetFile> {
    let mut given = BTreeMap::new();
    let values = Values::read(source, Table::Set, table, 0..0);
    remember(&mut given, "", &values, Table::Set);
    let mut sub = |source: &mut Source<'_>, name: &str, kind| {
        let Some((table, place)) = table_of(source, Table::Set, table, name) else {
            return Values::default();
        };
        let values = Values::read(source, kind, table, place);
        remember(&mut given, &format!("{name}."), &values, kind);
        values
    };
    let limits = sub(source, "limits", Table::Limits);
    let tls = sub(source, "tls", Table::Tls);
    let mut settings = read_attributes(source, &mut given, "", Table::Set, table);
    take_mode(source, &values, &mut settings);
    let read = read_volumes(source, &mut given, table);
    if read.is_empty() && !has_key(table, "volume") {
        source.fault(&(0..0), format_args!("a [[volume]], with name and backing, {MISSING}"));
    }
    let cache = required(source, &values, "cache");
    if !values.is_on("insecure_tcp") {
        check_tls(source, &values, &tls);
    }
    let serve = ServeConfig {
        nbd: values.list("nbd"),
        vhost_user: read.iter().flat_map(guests_of).collect(),
        settings,
        volume_settings: read
            .iter()
            .map(|volume| (volume.file.name.clone(), volume.file.settings.clone()))
            .collect(),
        headers: read.iter().filter_map(|volume| volume.file.header.clone()).collect(),
        adopt: read
            .iter()
            .filter(|volume| volume.adopt)
            .map(|volume| volume.file.name.clone())
            .collect(),
        ublk: ublk_of(source, &values, &read),
        cache_optional: values.is_on("cache_optional"),
        keep_clean: values.is_on("keep_clean"),
        index_memory: Some(values.number("index_memory").unwrap_or(384 << 20)),
        busy_poll: Duration::from_micros(values.number("busy_poll").unwrap_or(100)),
        threads: values.number("threads").unwrap_or(1) as usize,
        trust_discards: values.is_on("trust_discards"),
        read_only: match values.is_on("read_only") {
            true => ReadOnly::All,
            false => read_only(&read),
        },
        socket_access: SocketAccess {
            mode: values.number("socket_mode").unwrap_or(0o600) as u32,
            group: values.number("socket_group").map(|group| group as u32),
        },
        allow: values.list("allow"),
        tls: TlsOptions {
            directory: tls.text("directory").map(PathBuf::from),
            certificate: tls.text("certificate").map(PathBuf::from),
            key: tls.text("key").map(PathBuf::from),
            client_authorities: tls.text("client_ca").map(PathBuf::from),
            verify_peer: tls.is_on("verify_peer"),
            insecure: values.is_on("insecure_tcp"),
        },
        drain_timeout: Nanos::from_micros(values.number("drain_timeout").unwrap_or(10_000_000)),
        clients: client_limits(&limits, &read),
        page_cache: match values.text("page_cache").as_deref() {
            Some("needed") => PageCache::Needed,
            Some("always") => PageCache::Always,
            _ => PageCache::Never,
        },
        ..ServeConfig::default()
    };
    let nbd_place = source.place(&values.place("nbd"));
    let volumes = read.into_iter().map(|volume| volume.file).collect();
    Some(SetFile {
        file: source.file.to_owned(),
        name,
        cache: cache?,
        nbd_place,
        serve,
        volumes,
        given,
    })
}

/// A volume with what goes into the configuration of the set.
struct ReadVolume {
    file: VolumeFile,
    ways: Vec<ExportWay>,
    read_only: bool,
    adopt: bool,
    rates: Rates,
}

fn read_volumes(
    source: &mut Source<'_>,
    given: &mut BTreeMap<String, String>,
    table: &DeTable<'_>,
) -> Vec<ReadVolume> {
    let Some((_, value)) = table.iter().find(|(key, _)| key.get_ref() == "volume") else {
        return Vec::new();
    };
    let one;
    let items: &[Spanned<DeValue<'_>>] = match value.get_ref() {
        DeValue::Array(items) => items,
        // `[volume]` with one bracket too few.
        DeValue::Table(_) => {
            source
                .fault(&value.span(), "volume: found a table, expected [[volume]], once for each");
            one = [value.clone()];
            &one
        }
        other => {
            let found = found(other);
            source.fault(&value.span(), format_args!("volume: found {found}, expected [[volume]]"));
            return Vec::new();
        }
    };
    let mut volumes: Vec<ReadVolume> = Vec::new();
    let mut places: Vec<Place> = Vec::new();
    for item in items {
        let DeValue::Table(table) = item.get_ref() else {
            let found = found(item.get_ref());
            source.fault(&item.span(), format_args!("volume: found {found}, expected a table"));
            continue;
        };
        let Some((volume, place)) = read_volume(source, given, table, item.span()) else {
            continue;
        };
        let name = &volume.file.name;
        if let Some(at) = volumes.iter().position(|other| other.file.name == *name) {
            let line = places[at].line;
            source.fault(
                &place,
                format_args!("name: \"{name}\" is that of the volume in line {line}"),
            );
        }
        places.push(source.place(&place));
        volumes.push(volume);
    }
    volumes
}

fn read_volume(
    source: &mut Source<'_>,
    given: &mut BTreeMap<String, String>,
    table: &DeTable<'_>,
    place: Range<usize>,
) -> Option<(ReadVolume, Range<usize>)> {
    let values = Values::read(source, Table::Volume, table, place);
    let limits = match table_of(source, Table::Volume, table, "limits") {
        Some((limits, place)) => Values::read(source, Table::VolumeLimits, limits, place),
        None => Values::default(),
    };
    let name = required(source, &values, "name");
    let backing = required(source, &values, "backing");
    let prefix = format!("volume.{}.", name.as_ref().map_or("", |(name, _)| name));
    remember(given, &prefix, &values, Table::Volume);
    remember(given, &format!("{prefix}limits."), &limits, Table::VolumeLimits);
    let mut settings = read_attributes(source, given, &prefix, Table::Volume, table);
    take_mode(source, &values, &mut settings);
    let place = values.place("name");
    let name = name?.0;
    if name.contains('/') || name.chars().any(char::is_control) {
        source
            .fault(&place, format_args!("name: found {}, expected no \"/\" in it", quoted(&name)));
    }
    let (header, optional) = (values.text("header").map(PathBuf::from), values.is_on("optional"));
    let file = VolumeFile { name, backing: backing?, header, optional, settings };
    let rates = Rates { requests: limits.number("iops"), bytes: limits.number("bytes") };
    let ways = values.list("export");
    let (read_only, adopt) = (values.is_on("read_only"), values.is_on("adopt"));
    Some((ReadVolume { file, ways, read_only, adopt, rates }, place))
}

fn read_attributes(
    source: &mut Source<'_>,
    given: &mut BTreeMap<String, String>,
    prefix: &str,
    owner: Table,
    table: &DeTable<'_>,
) -> Vec<(String, String)> {
    let Some((table, _)) = table_of(source, owner, table, "attributes") else { return Vec::new() };
    let owner = if owner == Table::Set { Owner::Set } else { Owner::Volume };
    let settings = attributes::read(source, owner, table);
    for (name, value) in &settings {
        given.insert(format!("{prefix}attributes.{name}"), quoted(value));
    }
    settings
}

/// Lets `mode` be the attribute that it stands for.
fn take_mode(source: &mut Source<'_>, values: &Values, settings: &mut Vec<(String, String)>) {
    let Some(mode) = values.text("mode") else { return };
    if settings.iter().any(|(name, _)| name == "cache_mode") {
        source.fault(&values.place("mode"), "mode: the attribute cache_mode is given as well");
    }
    settings.insert(0, ("cache_mode".to_owned(), mode));
}

/// A TCP port needs certificates.
fn check_tls(source: &mut Source<'_>, values: &Values, tls: &Values) {
    use crate::config::NbdAddress;
    let has_tcp = values.list("nbd").iter().any(|address| matches!(address, NbdAddress::Tcp(_)));
    let has_tls = tls.text("directory").is_some() || tls.text("certificate").is_some();
    if has_tcp && !has_tls {
        source.fault(
            &values.place("nbd"),
            "nbd: a TCP port without TLS: expected [tls] with the directory of certificates, or \
             insecure_tcp = true",
        );
    }
}

fn required(source: &mut Source<'_>, values: &Values, name: &str) -> Option<(String, Place)> {
    let text = values.text(name);
    let place = values.place(name);
    // A value of a wrong kind has its own fault.
    if text.is_none() && !source.faults.iter().any(|it| it.what.starts_with(&format!("{name}: "))) {
        source.fault(&place, format_args!("the key \"{name}\" {MISSING}"));
    }
    text.map(|text| (text, source.place(&place)))
}

fn has_key(table: &DeTable<'_>, name: &str) -> bool {
    table.iter().any(|(key, _)| key.get_ref() == name)
}

fn remember(given: &mut BTreeMap<String, String>, prefix: &str, values: &Values, table: Table) {
    for (key, shown) in values.shown(table) {
        given.insert(format!("{prefix}{}", key.name), shown);
    }
}

fn guests_of(volume: &ReadVolume) -> Vec<VhostUserExport> {
    let of_way = |way: &ExportWay| match way {
        ExportWay::VhostUser(path) => {
            Some(VhostUserExport { export: Some(volume.file.name.clone()), path: path.clone() })
        }
        ExportWay::Nbd | ExportWay::Ublk(_) => None,
    };
    volume.ways.iter().filter_map(of_way).collect()
}

fn ublk_of(source: &mut Source<'_>, values: &Values, volumes: &[ReadVolume]) -> UblkOptions {
    let of_volume = |volume: &ReadVolume| {
        let found = volume.ways.iter().find_map(|way| match way {
            ExportWay::Ublk(device) => Some(*device),
            ExportWay::Nbd | ExportWay::VhostUser(_) => None,
        })?;
        Some(UblkExport { export: Some(volume.file.name.clone()), device: found })
    };
    let abilities = |name: &str| {
        let all = values.list::<Features>(name);
        Features(all.iter().fold(0, |all, one| all | one.0))
    };
    let options = UblkOptions {
        exports: volumes.iter().filter_map(of_volume).collect(),
        without: abilities("ublk_without"),
        require: abilities("ublk_require"),
        ..UblkOptions::default()
    };
    if let Some(names) = options.impossible() {
        let place = values.place("ublk_require");
        let off = options.without;
        source.fault(
            &place,
            format_args!("ublk_require: {names} can't be had with ublk_without of {off}"),
        );
    }
    options
}

fn read_only(volumes: &[ReadVolume]) -> ReadOnly {
    let names = volumes.iter().filter(|volume| volume.read_only);
    match names.map(|volume| volume.file.name.clone()).collect::<Vec<_>>() {
        names if names.is_empty() => ReadOnly::Nothing,
        names => ReadOnly::Some(names),
    }
}

fn client_limits(limits: &Values, volumes: &[ReadVolume]) -> ClientLimits {
    let default = ClientLimits::default();
    let all = Rates { requests: limits.number("iops"), bytes: limits.number("bytes") };
    let exports = [(None, all)].into_iter();
    let named = volumes.iter().map(|volume| (Some(volume.file.name.clone()), volume.rates));
    ClientLimits {
        memory: limits.number("client_memory").unwrap_or(default.memory),
        connections: limits.number("max_connections").unwrap_or(default.connections),
        each: Rates {
            requests: limits.number("client_iops"),
            bytes: limits.number("client_bytes"),
        },
        exports: exports
            .chain(named)
            .filter(|(_, rates)| rates.requests.is_some() || rates.bytes.is_some())
            .collect(),
    }
}
