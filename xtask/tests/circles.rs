//! Files of a crate that import one another, directly or by way of others, can only be understood
//! together: there are none. In the engine the parts have an order as well, and import what is
//! below them only.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use syn::visit::Visit;

const CRATES: &[&str] = &["engine", "offline", "daemon"];

/// Parts of the engine in their order, by the names of their modules; those of one line may import
/// one another. The root is last: it names all of them.
const LAW: &[&[&str]] = &[
    &[
        "bucket_set",
        "errors",
        "events",
        "marks",
        "rules",
        "settings",
        "stats",
        "time_slices",
        "tuning",
    ],
    &["replacement"],
    &[
        "counted_device",
        "health",
        "lost_by_failed_flush",
        "mirror",
        "move_log",
        "superblock",
        "write_turns",
    ],
    &["context"],
    &["journal"],
    &["alloc"],
    &["index", "volume_table"],
    &["gc"],
    &["bypass", "coherence"],
    &["flash", "inspect", "memory_held", "mutants", "request", "scrub", "volume", "writeback"],
    &["set"],
    &[""],
];

#[test]
fn no_file_is_in_a_circle_of_imports() {
    for name in CRATES {
        let circles = circles(&imports_of(&sources_of(name)));
        assert!(circles.is_empty(), "crates/{name}: {circles:#?}");
    }
}

#[test]
fn parts_of_the_engine_import_those_below_them() {
    let mut wrong = Vec::new();
    for (from, imported) in imports_of(&sources_of("engine")) {
        let upwards = imported.iter().filter(|to| level(to) > level(&from));
        wrong.extend(upwards.map(|to| format!("{from} imports {to}")));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Place of a module in the law: that of the longest name that it has or lies in.
fn level(module: &str) -> usize {
    let lies_in = |part: &str| {
        module.strip_prefix(part).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    };
    let named = |part: &&&str| lies_in(part) && (module.is_empty() || !part.is_empty());
    let places = LAW.iter().enumerate();
    let found = places.flat_map(|(level, parts)| parts.iter().map(move |part| (part, level)));
    let found = found.filter(|(part, _)| named(part)).max_by_key(|(part, _)| part.len());
    found.unwrap_or_else(|| panic!("the law has no place for {module}")).1
}

fn sources_of(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates").join(name).join("src")
}

#[test]
fn import_circle_is_found() {
    let graph = [("a", "b"), ("b", "c"), ("c", "a"), ("c", "d"), ("e", "a")];
    let mut imports: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (from, to) in graph {
        imports.entry(from.to_owned()).or_default().insert(to.to_owned());
        imports.entry(to.to_owned()).or_default();
    }
    let circle: BTreeSet<String> = ["a", "b", "c"].map(str::to_owned).into();
    assert_eq!(circles(&imports), [circle]);
}

/// Files that reach one another, in groups.
fn circles(imports: &BTreeMap<String, BTreeSet<String>>) -> Vec<BTreeSet<String>> {
    let reached: BTreeMap<&String, BTreeSet<String>> =
        imports.keys().map(|from| (from, reached(imports, from))).collect();
    let mut circles: Vec<BTreeSet<String>> = Vec::new();
    for (from, there) in &reached {
        let circle: BTreeSet<String> =
            there.iter().filter(|to| reached[to].contains(*from)).cloned().collect();
        if circle.len() > 1 && !circles.contains(&circle) {
            circles.push(circle);
        }
    }
    circles
}

/// Files that are imported by this one, or by those that it imports.
fn reached(imports: &BTreeMap<String, BTreeSet<String>>, from: &str) -> BTreeSet<String> {
    let (mut seen, mut next) = (BTreeSet::new(), vec![from.to_owned()]);
    while let Some(file) = next.pop() {
        for to in &imports[&file] {
            if seen.insert(to.clone()) {
                next.push(to.clone());
            }
        }
    }
    seen
}

/// Modules by name (`alloc::prio`; the root is empty), with the modules that their files import.
fn imports_of(sources: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let files = files(sources);
    assert!(!files.is_empty(), "{} has sources", sources.display());
    let modules: BTreeMap<String, &PathBuf> =
        files.iter().map(|file| (module_of(sources, file), file)).collect();
    let imports = modules.iter().map(|(module, file)| {
        let text = std::fs::read_to_string(file).expect("a source");
        let parsed = syn::parse_file(&text).expect("Rust");
        let mut paths = Paths::default();
        paths.visit_file(&parsed);
        let found = paths.found.iter().filter_map(|path| resolve(&modules, module, path));
        (module.clone(), found.filter(|to| to != module).collect())
    });
    imports.collect()
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).expect("a directory");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths
        .flat_map(|path| match path.is_dir() {
            true => files(&path),
            false => vec![path],
        })
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect()
}

fn module_of(sources: &Path, file: &Path) -> String {
    let inside = file.strip_prefix(sources).expect("below the sources").with_extension("");
    let mut parts: Vec<_> = inside.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if ["lib", "main", "mod"].contains(&parts.last().expect("a name").as_str()) {
        parts.pop();
    }
    parts.join("::")
}

/// The module that a path of `module` leads into.
fn resolve(modules: &BTreeMap<String, &PathBuf>, module: &str, path: &[String]) -> Option<String> {
    let mut base: Vec<&str> = module.split("::").filter(|part| !part.is_empty()).collect();
    let mut parts = path.iter().map(String::as_str).peekable();
    match parts.next()? {
        "crate" => base.clear(),
        "self" => {}
        "super" => {
            base.pop();
            while parts.next_if_eq(&"super").is_some() {
                base.pop();
            }
        }
        // A module of this one.
        child if modules.contains_key(&[&base[..], &[child]].concat().join("::")) => {
            base.push(child);
        }
        _ => return None,
    }
    base.extend(parts);
    while !base.is_empty() && !modules.contains_key(&base.join("::")) {
        base.pop();
    }
    Some(base.join("::"))
}

/// Every path that begins in the crate, in imports and in code. Tests don't count.
#[derive(Default)]
struct Paths {
    found: Vec<Vec<String>>,
}

impl Paths {
    fn note(&mut self, path: Vec<String>) {
        self.found.push(path);
    }

    fn note_use(&mut self, tree: &syn::UseTree, mut path: Vec<String>) {
        match tree {
            syn::UseTree::Path(part) => {
                path.push(part.ident.to_string());
                self.note_use(&part.tree, path);
            }
            syn::UseTree::Name(name) => {
                path.push(name.ident.to_string());
                self.note(path);
            }
            syn::UseTree::Rename(name) => {
                path.push(name.ident.to_string());
                self.note(path);
            }
            syn::UseTree::Glob(_) => self.note(path),
            syn::UseTree::Group(group) => {
                group.items.iter().for_each(|tree| self.note_use(tree, path.clone()));
            }
        }
    }
}

fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Path>().is_ok_and(|path| path.is_ident("test"))
    })
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !is_test(&item.attrs) {
            syn::visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        // A re-export of a module's parts is no import of its own.
        if matches!(item.vis, syn::Visibility::Inherited) {
            self.note_use(&item.tree, Vec::new());
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.segments.len() > 1 {
            self.note(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        }
        syn::visit::visit_path(self, path);
    }
}
