//! What each level of `smoke` makes of damaged models: `docs/smoke-mutations.md` is made here, and kept right.
//!
//! `LARDER_BLESS=1 cargo test --test smoke_mutations` writes the page anew.
#![cfg(feature = "smoke")]
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use larder::digest::Sha256;
use larder::fsio::{self, WriteOptions};
use larder::smoke::{self, Compared, Device, Job, Key, Level, Outcome, Records, Run};
use serde_json::Value;

#[path = "smoke_mutations/damages.rs"]
mod damages;
#[path = "smoke_mutations/embedder.rs"]
mod embedder;
#[path = "smoke_mutations/generators.rs"]
mod generators;
#[path = "smoke_mutations/languages.rs"]
mod languages;
#[expect(dead_code, reason = "other tests use the rest")]
#[path = "support/made_language.rs"]
mod made_language;
#[path = "support/made_towers.rs"]
mod made_towers;
#[path = "support/program.rs"]
mod program;
#[expect(dead_code, reason = "other tests use the rest")]
#[path = "support/tiny_generators.rs"]
mod tiny_generators;
#[path = "smoke_mutations/towers.rs"]
mod towers;

use program::{INVENTORY, Lab};
use tiny_generators::Tiny;

/// What the ladder found.
#[derive(Debug, PartialEq)]
struct Found {
    /// The first check that failed, by level.
    failed: [Option<String>; 3],
    /// Whether what was computed is another thing than what the intact model was recorded with, as the program judges it.
    differs: bool,
    /// The outcome that the program tells its user, by every level and the record.
    outcome: String,
}

/// A generator, how its tests are called, and what is done to it.
struct Family {
    title: &'static str,
    smoke: &'static str,
    levels: &'static [Level],
    /// Of how many levels something is recorded.
    recorded: usize,
    base: fn() -> Tiny,
    /// How it is written.
    files: fn(&Tiny) -> BTreeMap<String, Vec<u8>>,
    mutations: Vec<Mutation>,
}

struct Mutation {
    what: &'static str,
    /// Makes of the intact model what is compared with, before the damage: another way to store it.
    stored: Option<fn(&mut Tiny)>,
    damage: fn(&mut Tiny),
}

fn mutation(what: &'static str, damage: fn(&mut Tiny)) -> Mutation {
    Mutation { what, stored: None, damage }
}

/// A lab whose machine trusted the intact model and recorded it.
struct Trusting<'a> {
    family: &'a Family,
    lab: Lab,
    intact: BTreeMap<String, Vec<u8>>,
}

impl<'a> Trusting<'a> {
    fn new(tiny: &Tiny, family: &'a Family) -> Self {
        let intact = (family.files)(tiny);
        let pinned =
            |(path, bytes): (&String, &Vec<u8>)| format!("{{ path = {path:?}, sha256 = \"{}\" }}", Sha256::of(bytes));
        let list: Vec<String> = intact.iter().map(pinned).collect();
        let manifest = format!(
            "[[artifact]]\nname = \"tiny\"\nstore = \"plain\"\nsource = \"local\"\nsmoke = \"{}\"\nfile = [{}]\n",
            family.smoke,
            list.join(", ")
        );
        let trusting = Self { family, lab: Lab::new(INVENTORY, &manifest), intact };
        trusting.lay(&trusting.intact);
        let said = trusting.lab.run(&["smoke", "--level", "generate", "--record"]);
        assert_eq!(said.code, 0, "{}: {}", family.title, said.out);
        assert_eq!(said.err.matches("recorded as reference").count(), family.recorded, "{}", said.err);
        trusting
    }

    /// Puts these files where the model's are, and no others.
    fn lay(&self, files: &BTreeMap<String, Vec<u8>>) {
        for path in self.intact.keys().chain(files.keys()) {
            let place = format!("home/plain/{path}");
            match files.get(path) {
                Some(bytes) => self.lab.write(&place, bytes),
                None => fsio::remove_file(&self.lab.path(&place)).unwrap(),
            }
        }
    }

    /// All levels, whatever the ones before found, and what the program says: it stops at the first that fails.
    fn ladder(&self, tiny: &Tiny) -> Found {
        let files = (self.family.files)(tiny);
        self.lay(&files);
        let said = self.lab.run(&["smoke", "--json", "--level", "generate"]);
        let json: Value = serde_json::from_str(&said.out).unwrap();
        let verdict = &json["artifacts"][0];
        let checks = verdict["checks"].as_array().unwrap();
        let failed = checks.iter().find(|check| check["level"] == "structure" && check["outcome"] == "failed");
        let mut found = Found {
            failed: [failed.map(|check| check["name"].as_str().unwrap().to_owned()), None, None],
            differs: false,
            outcome: verdict["outcome"].as_str().unwrap().to_owned(),
        };
        for level in self.family.levels {
            let mut run = run(&self.lab, &files, self.family.smoke, *level);
            assert!(!run.checks.is_empty());
            found.failed[*level as usize] =
                run.checks.iter().find(|check| check.outcome != Outcome::Passed).map(|check| check.name.clone());
            run.checks.clear();
            self.compare(*level, &mut run);
            found.differs |= run.checks.iter().any(|check| check.outcome == Outcome::Failed);
        }
        self.lay(&self.intact);
        found
    }

    /// Adds the check against what was recorded, where anything was computed.
    fn compare(&self, level: Level, run: &mut Run) {
        let path = Records::place(&self.lab.path("inventory.toml"));
        let json: Value = serde_json::from_slice(&fs_err::read(&path).unwrap()).unwrap();
        let text = |key: &str| json["records"][0][key].as_str().unwrap().to_owned();
        let (artifact, files, larder) = (text("artifact"), text("files"), text("larder"));
        let key = Key { artifact, files, taken: Vec::new(), level, larder };
        let compared = Records::read(&path).unwrap().compare(&key, Device::Cpu, run);
        assert_eq!(run.checks.len(), usize::from(matches!(compared, Compared::With(_))));
        assert_eq!(run.checks.is_empty(), run.summaries.is_empty(), "what was computed is compared");
    }
}

fn run(lab: &Lab, files: &BTreeMap<String, Vec<u8>>, smoke: &str, level: Level) -> Run {
    let places: BTreeMap<String, PathBuf> =
        files.keys().map(|path| (path.clone(), lab.path(&format!("home/plain/{path}")))).collect();
    let out = lab.path("made");
    fsio::create_dir_all(&out, None).unwrap();
    let job = Job {
        artifact: "tiny",
        smoke,
        level,
        device: Device::Cpu,
        files: &places,
        others: &BTreeMap::new(),
        out: &out,
        // As the program computed what was recorded.
        seed: 20_260_223,
        told: &|_, _, _| (),
        stopped: &|| false,
    };
    let runners = smoke::runners();
    smoke::runner(&runners, Some(smoke), level).unwrap_or_else(|check| panic!("{check:?}")).run(&job)
}

/// The table of one generator, and of what the program says nothing.
fn table(family: &Family) -> (String, Vec<String>) {
    let mut unseen = Vec::new();
    let base = (family.base)();
    let trusting = Trusting::new(&base, family);
    let intact = trusting.ladder(&base);
    let fine = Found { failed: [None, None, None], differs: false, outcome: "passed".to_owned() };
    assert_eq!(intact, fine, "{}", family.title);
    let mut out = format!("\n## {}\n\n| damage | structure | component | generate | recorded run |\n", family.title);
    out.push_str("|---|---|---|---|---|\n");
    out.push_str(&row("none", &intact));
    for mutation in &family.mutations {
        let mut tiny = base.clone();
        let stored = mutation.stored.map(|store| {
            store(&mut tiny);
            let trusting = Trusting::new(&tiny, family);
            assert_eq!(trusting.ladder(&tiny), fine, "{}: {}: only stored otherwise", family.title, mutation.what);
            trusting
        });
        (mutation.damage)(&mut tiny);
        let after = stored.as_ref().unwrap_or(&trusting).ladder(&tiny);
        out.push_str(&row(mutation.what, &after));
        if after.outcome == "passed" {
            unseen.push(format!("{}: {}", family.title, mutation.what));
        }
    }
    (out, unseen)
}

fn row(what: &str, found: &Found) -> String {
    let cell = |failed: &Option<String>| failed.clone().unwrap_or_else(|| "–".to_owned());
    let [structure, component, generate] = found.failed.each_ref().map(cell);
    let recorded = if found.differs { "differs" } else { "–" };
    format!("| {what} | {structure} | {component} | {generate} | {recorded} |\n")
}

/// Every generator whose damages the page shows.
const FAMILIES: [fn() -> Family; 8] = [
    generators::pictures,
    generators::sounds,
    generators::vocoder,
    towers::clip,
    towers::open_clip,
    embedder::sentences,
    languages::guard,
    languages::qwen,
];

#[test]
#[expect(clippy::disallowed_methods, reason = "the environment says whether the page is to be written anew")]
fn every_damage_is_noticed() {
    let tables = std::thread::scope(|scope| {
        let begun = FAMILIES.map(|family| scope.spawn(move || table(&family())));
        begun.map(|table| table.join().unwrap())
    });
    let unseen: Vec<&String> = tables.iter().flat_map(|(_, unseen)| unseen).collect();
    assert!(unseen.is_empty(), "passed in spite of: {unseen:#?}");
    let page: String = [include_str!("smoke_mutations/head.md")]
        .into_iter()
        .chain(tables.iter().map(|(table, _)| table.as_str()))
        .collect();
    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/smoke-mutations.md");
    if std::env::var_os("LARDER_BLESS").is_some() {
        fsio::write_atomic(&place, page.as_bytes(), &WriteOptions { mode: Some(0o644), ..WriteOptions::default() })
            .unwrap();
    }
    assert_eq!(fs_err::read_to_string(&place).unwrap_or_default(), page, "write it anew with LARDER_BLESS=1");
}
