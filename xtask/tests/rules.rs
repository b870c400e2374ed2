//! The rules of docs/internals/coherence.md, of the engine and of the model: one list. A rule that
//! one of them has and another lacks is found here, or stands below with the reason.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use support::sources;

/// Rules that the engine keeps and can't break by a switch, so that its list lacks them.
const NOT_IN_THE_ENGINE: &[(&str, &str)] = &[
    ("T1", "the table itself; T2 to T4 say what it is for"),
    ("R1", "the pins of it are J2's, the fill is T3's"),
    ("R2", "the order of steps"),
    ("C2", "the flush that covers a copy is F1's"),
    ("W1", "the order of steps; T2 says why"),
    ("W6", "the order of steps"),
    ("K2", "the order of steps; its copies are W2's"),
    ("F6", "the host's files keep it, below the engine"),
    ("F7", "the host's and the simulator's devices have it"),
    ("L1", "the client of NBD keeps it, below the engine"),
    ("L2", "the client of NBD keeps it, below the engine"),
    ("L3", "the client of NBD keeps it, below the engine"),
    ("L4", "volumes on object stores keep it, below the engine"),
    ("L5", "volumes on object stores keep it, below the engine"),
    ("J4", "the ring gives no such bucket out, and asserts it"),
    ("A7", "a command of the administrator, tested by itself"),
    ("A14", "the offline tools keep it, with a test of its own"),
    ("N3", "nothing is wrong without it, only smaller"),
    ("N6", "no seed found its mutant, with a test of its own"),
    ("Y1", "the order of steps; its writes are K1's and K3's, its flush is F1's, its room is N6's"),
    ("Y2", "the order of steps, with a test of its own"),
    ("Y3", "a command of the administrator, tested by itself"),
    ("G3", "no seed found its mutant; see docs/internals/simulation.md"),
    ("G5", "no seed found its mutant; see docs/internals/simulation.md"),
    ("G6", "for sets of early ubcache, with a test of its own"),
];

/// Rules that the model lacks: it knows one or two sectors, and no buckets, nodes or superblocks.
const NOT_IN_THE_MODEL: &[(&str, &str)] = &[
    ("T0", "the model's data has no memory that could change"),
    ("T5", "the model's sectors have no parts"),
    ("R6", "a piece is a fill that is registered early: T2 and T3 are in the model"),
    ("R7", "its steps are those of R1 and R2, and the reuse of its bucket is J2's"),
    ("D2", "the model's device reads the same each time"),
    ("D3", "the model's device gives no room back"),
    ("D4", "the model's device has no holes"),
    ("F6", "the model has no page cache"),
    ("F7", "a FUA write that fails is no failed flush in the model"),
    ("L1", "the model's devices are local"),
    ("L2", "the model's devices are local"),
    ("L3", "the model's devices are local"),
    ("L4", "the model's devices are local"),
    ("L5", "the model's devices are local"),
    ("J4", "the model's journal has no ring"),
    ("J5", "the model's journal forgets nothing"),
    ("X1", "the model's index is a map of sectors"),
    ("X2", "the model's index is a map of sectors"),
    ("A2", "one backing device, always the same"),
    ("A3", "nothing is detached"),
    ("A4", "a set that fails is not gone past in the model"),
    ("A5", "no copies of devices"),
    ("A6", "devices have one size"),
    ("A7", "nothing is detached"),
    ("A8", "one cache, always the same"),
    ("A9", "one backing device, always the same"),
    ("A10", "no buckets"),
    ("A11", "one backing device, always the same"),
    ("A12", "no buckets"),
    ("A13", "one backing device, always the same"),
    ("A14", "nothing is moved in place"),
    ("N1", "there is room or there is none, as for any copy"),
    ("N2", "records have room"),
    ("N3", "no buckets"),
    ("N4", "no nodes"),
    ("N5", "no nodes, and a journal without a ring"),
    ("Q1", "the model's devices return what was written"),
    ("N6", "no buckets"),
    ("Y1", "the model's data has a backing device"),
    ("Y2", "the model's data has a backing device"),
    ("Y3", "the model's data has a backing device"),
    ("V2", "no buckets"),
    ("V3", "the journal of the model has no memory beside it"),
    ("H1", "nobody else runs the set"),
    ("H2", "nobody else runs the set"),
    ("G1", "no generations"),
    ("G2", "no generations"),
    ("G3", "no generations"),
    ("G4", "no generations"),
    ("G5", "no generations"),
    ("G6", "no generations"),
    ("M1", "nothing is moved"),
    ("S1", "no time"),
    ("S2", "no memory"),
];

/// An invariant that is a rule of the engine, too: nothing else says it of garbage collection.
const INVARIANTS_IN_THE_ENGINE: &[&str] = &["I10"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is in the workspace").to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn set<'a>(numbers: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    numbers.into_iter().map(str::to_owned).collect()
}

/// Returns true for a number like W3 or I10.
fn is_number(text: &str) -> bool {
    let digits = text.trim_start_matches(|letter: char| letter.is_ascii_uppercase());
    text.len() == digits.len() + 1
        && !digits.is_empty()
        && digits.chars().all(|digit| digit.is_ascii_digit())
}

/// Definitions in coherence.md: `- **W3.** …` and `**Moves (M1).** …`, in their order.
fn defined() -> Vec<String> {
    let text = read("docs/internals/coherence.md");
    let mut numbers = Vec::new();
    for line in text.lines() {
        let Some(bold) = line.trim_start_matches("- ").strip_prefix("**") else { continue };
        let Some((title, _)) = bold.split_once(".**").or_else(|| bold.split_once("**")) else {
            continue;
        };
        let number = match title.split_once('(') {
            Some((_, inner)) => inner.trim_end_matches([')', '.']),
            None => title,
        };
        // A paragraph on a rule in section 8 is not its definition.
        if is_number(number) && !numbers.iter().any(|known| known == number) {
            numbers.push(number.to_owned());
        }
    }
    numbers
}

/// A rule of the engine.
struct Rule {
    name: String,
    numbers: Vec<String>,
}

/// The list in crates/engine/src/rules.rs, in its order: `Name, ["W2", "E1"],`.
fn engine() -> Vec<Rule> {
    let text = read("crates/engine/src/rules.rs");
    let list = text.split("\nrules! {").nth(1).expect("the list of rules");
    let list = list.split("\n}\n").next().expect("its end");
    let entry = |line: &str| {
        let (name, rest) = line.trim().split_once(", [")?;
        let numbers = rest.strip_suffix("],")?;
        let numbers = numbers.split(", ").map(|number| number.trim_matches('"').to_owned());
        Some(Rule { name: name.to_owned(), numbers: numbers.collect() })
    };
    list.lines().filter_map(entry).collect()
}

/// All sources of the engine but its list of rules.
fn engine_sources() -> String {
    fn walk(folder: &Path, all: &mut String) {
        let entries = fs::read_dir(folder).expect("a folder of the engine");
        for entry in entries.map(|entry| entry.expect("an entry").path()) {
            if entry.is_dir() {
                walk(&entry, all);
            } else if !entry.ends_with("src/rules.rs") {
                *all += &fs::read_to_string(&entry).expect("a source of the engine");
            }
        }
    }
    let mut all = String::new();
    walk(&root().join("crates/engine/src"), &mut all);
    all
}

/// `RULES` of the model: the numbers, and the switches of each; and the switches that there are.
fn model() -> (Vec<(String, Vec<String>)>, BTreeSet<String>) {
    let file = syn::parse_file(&read("crates/model/src/rules.rs")).expect("a Rust file");
    let mut rules = Vec::new();
    let mut switches = BTreeSet::new();
    for item in file.items {
        match item {
            syn::Item::Const(list) if list.ident == "RULES" => {
                for entry in elements(&list.expr) {
                    let syn::Expr::Tuple(pair) = entry else { panic!("a pair in RULES") };
                    let names = elements(&pair.elems[1]);
                    rules.push((literal(&pair.elems[0]), names.into_iter().map(literal).collect()));
                }
            }
            syn::Item::Struct(list) if list.ident == "Rules" => {
                let names = list.fields.iter().filter_map(|field| field.ident.as_ref());
                switches.extend(names.map(ToString::to_string));
            }
            _ => (),
        }
    }
    (rules, switches)
}

fn elements(list: &syn::Expr) -> Vec<&syn::Expr> {
    match list {
        syn::Expr::Reference(reference) => elements(&reference.expr),
        syn::Expr::Array(array) => array.elems.iter().collect(),
        _ => panic!("a list"),
    }
}

fn literal(text: &syn::Expr) -> String {
    match text {
        syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) => text.value(),
        _ => panic!("a string"),
    }
}

fn is_invariant(number: &str) -> bool {
    number.starts_with('I')
}

#[test]
fn document_and_engine_have_the_same_rules() {
    let own: Vec<String> = engine().iter().map(|rule| rule.numbers[0].clone()).collect();
    let engine = set(own.iter().map(String::as_str));
    let rules = defined();
    let rules = rules.iter().map(String::as_str).filter(|number| !is_invariant(number));
    let excused = set(NOT_IN_THE_ENGINE.iter().map(|(number, _)| *number));
    let excused_and_there: Vec<&String> = excused.intersection(&engine).collect();
    assert!(excused_and_there.is_empty(), "the engine has these after all: {excused_and_there:?}");
    let expected: BTreeSet<String> = &set(rules) | &set(INVARIANTS_IN_THE_ENGINE.iter().copied());
    let listed = &engine | &excused;
    let missing: Vec<&String> = expected.difference(&listed).collect();
    assert!(missing.is_empty(), "in coherence.md, not in crates/engine/src/rules.rs: {missing:?}");
    let unknown: Vec<&String> = listed.difference(&expected).collect();
    assert!(unknown.is_empty(), "the engine's, but not defined in coherence.md: {unknown:?}");
}

#[test]
fn document_and_model_have_the_same_rules() {
    let (rules, _) = model();
    let model = set(rules.iter().map(|(number, _)| number.as_str()));
    let defined = defined();
    let expected = set(defined.iter().map(String::as_str).filter(|number| !is_invariant(number)));
    let excused = set(NOT_IN_THE_MODEL.iter().map(|(number, _)| *number));
    let excused_and_there: Vec<&String> = excused.intersection(&model).collect();
    assert!(excused_and_there.is_empty(), "the model has these after all: {excused_and_there:?}");
    let listed = &model | &excused;
    let missing: Vec<&String> = expected.difference(&listed).collect();
    assert!(missing.is_empty(), "in coherence.md, not in crates/model/src/rules.rs: {missing:?}");
    let unknown: Vec<&String> = listed.difference(&expected).collect();
    assert!(unknown.is_empty(), "the model's, but not defined in coherence.md: {unknown:?}");
}

#[test]
fn every_switch_of_the_model_belongs_to_a_rule() {
    let (rules, switches) = model();
    let used: BTreeSet<String> = rules.into_iter().flat_map(|(_, switches)| switches).collect();
    assert_eq!(used, switches);
}

#[test]
fn the_engine_lists_its_rules_in_the_order_of_the_document() {
    let order = defined();
    let place = |number: &str| order.iter().position(|known| known == number);
    let mut last = (None, String::new());
    for rule in engine() {
        for number in &rule.numbers {
            assert!(place(number).is_some(), "{}: {number} is not defined", rule.name);
        }
        assert!(
            rule.name.starts_with(&rule.numbers[0])
                && !rule.name[rule.numbers[0].len()..].starts_with(|c: char| c.is_ascii_digit()),
            "{} begins with its number",
            rule.name
        );
        let here = place(&rule.numbers[0]);
        assert!(last.0 <= here, "{} comes before {} in coherence.md", rule.name, last.1);
        last = (here, rule.name);
    }
}

/// A rule that no code asks for says nothing, and one that no mutant switches off is not tested.
#[test]
fn every_rule_of_the_engine_is_kept_somewhere_and_switched_off_by_a_mutant() {
    let sources = engine_sources();
    let mutants = read("crates/engine/src/mutants/mod.rs");
    let mutants = mutants.split("\nmutants! {").nth(1).expect("the table of mutants");
    for rule in engine() {
        let named = |text: &str, prefix: &str| {
            text.match_indices(&format!("{prefix}{}", rule.name)).any(|(at, found)| {
                !text[at + found.len()..].starts_with(|c: char| c.is_ascii_alphanumeric())
            })
        };
        assert!(named(&sources, "Rule::"), "no code of the engine keeps {}", rule.name);
        assert!(
            named(mutants, "[") || named(mutants, "        ") || named(mutants, ", "),
            "no mutant switches {} off",
            rule.name
        );
    }
}

/// Code of the engine that is looked at below.
fn is_looked_at(path: &Path) -> bool {
    !path.to_string_lossy().contains("/mutants/")
}

/// Returns true if the statement at the end of these lines is for builds with mutants only.
fn is_for_mutants(lines: &[&str]) -> bool {
    let before = lines.iter().rev().skip(1).take(4);
    let mut before = before.take_while(|line| !line.ends_with([';', '}']));
    before.any(|line| line.contains("#[cfg(feature = \"mutants\")]"))
}

/// Statement that a rule switches on, if it also has one for the rule switched off.
fn wrong_way(lines: &[&str], at: usize) -> Option<&'static str> {
    let line = lines[at].trim_start();
    let indent = lines[at].len() - line.len();
    let asked = line.split("keeps(").next().unwrap_or(line);
    if asked.strip_prefix("if !").is_some_and(|path| !path.contains(' ')) {
        return Some("a block for the rule switched off");
    }
    if line.starts_with("match ") && line.ends_with(") {") && !line.contains("&&") {
        return Some("an arm for the rule switched off");
    }
    if line.contains("} else {") {
        return Some("a value for the rule switched off");
    }
    let opens = line.starts_with("if ") && line.ends_with('{');
    let end = lines[at + 1..].iter().find(|line| {
        line.trim_start().starts_with('}') && line.len() - line.trim_start().len() == indent
    });
    (opens && end.is_some_and(|end| end.contains("else")))
        .then_some("an else for the rule switched off")
}

/// A rule that is switched off may leave something out. What a mutant does instead is in
/// `mutants/`, or is marked with its feature, so that the product is not compiled with it.
#[test]
fn a_mutant_has_no_code_of_its_own_in_the_product() {
    let mut files = Vec::new();
    sources(&root().join("crates/engine/src"), &mut files);
    files.retain(|path| is_looked_at(path));
    let (mut asked, mut wrong) = (0, Vec::new());
    for path in files {
        let text = fs::read_to_string(&path).expect("a source");
        let lines: Vec<&str> = text.lines().collect();
        for at in (0..lines.len()).filter(|at| lines[*at].contains("keeps(Rule::")) {
            asked += 1;
            if let Some(what) = wrong_way(&lines, at)
                && !is_for_mutants(&lines[..=at])
            {
                wrong.push(format!("{}:{}: {what}", path.display(), at + 1));
            }
        }
    }
    assert!(asked > 50, "{asked} rules that the code asks for");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
