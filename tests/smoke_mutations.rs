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
use serde_json::{Value, json};

#[path = "support/program.rs"]
mod program;
#[expect(dead_code, reason = "other tests use the rest")]
#[path = "support/tiny_generators.rs"]
mod tiny_generators;

use program::{INVENTORY, Lab};
use tiny_generators::{Numbers, Tensors, Tiny, filled};

const TRANSFORMER: &str = "transformer/diffusion_pytorch_model.safetensors";
const SECOND_SHARD: &str = "transformer/diffusion_pytorch_model-00002-of-00002.safetensors";
const VAE: &str = "vae/diffusion_pytorch_model.safetensors";

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
    base: fn() -> Tiny,
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
        let intact = tiny.files();
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
        assert_eq!(said.err.matches("recorded as reference").count(), family.levels.len(), "{}", said.err);
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
        let files = tiny.files();
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

fn tensors<'a>(tiny: &'a mut Tiny, path: &str) -> &'a mut Tensors {
    tiny.weights.get_mut(path).unwrap()
}

fn swap(tiny: &mut Tiny, path: &str, [one, other]: [&str; 2]) {
    let tensors = tensors(tiny, path);
    let (a, b) = (tensors[one].clone(), tensors[other].clone());
    tensors.insert(one.to_owned(), b);
    tensors.insert(other.to_owned(), a);
}

/// Turns rows into columns; the header says so, or not.
fn transpose(tiny: &mut Tiny, path: &str, name: &str, told: bool) {
    let tensor = tensors(tiny, path).get_mut(name).unwrap();
    let [rows, columns] = tensor.shape[..] else { panic!("{name} is no matrix") };
    tensor.numbers = (0..columns)
        .flat_map(|column| (0..rows).map(move |row| row * columns + column))
        .map(|at| tensor.numbers[at])
        .collect();
    if told {
        tensor.shape = vec![columns, rows];
    }
}

fn zero(tensors: &mut Tensors, of: &str) {
    for (_, tensor) in tensors.iter_mut().filter(|(name, _)| name.starts_with(of)) {
        tensor.numbers.fill(0.0);
    }
}

/// Other random weights of the same shapes.
fn redraw(tensors: &mut Tensors, of: &str) {
    for (name, tensor) in tensors.iter_mut().filter(|(name, _)| name.starts_with(of)) {
        tensor.numbers = filled(&format!("other.{name}"), &tensor.shape);
    }
}

/// The second block of the transformer in a file of its own, and an index.
fn shard(tiny: &mut Tiny) {
    let whole = tiny.weights.remove(TRANSFORMER).unwrap();
    let (second, first): (Tensors, Tensors) =
        whole.into_iter().partition(|(name, _)| name.starts_with("transformer_blocks.1."));
    let mut map = serde_json::Map::new();
    let first_path = SECOND_SHARD.replace("00002-of", "00001-of");
    for (path, tensors) in [(&first_path, &first), (&SECOND_SHARD.to_owned(), &second)] {
        let name = Path::new(path).file_name().unwrap().to_str().unwrap();
        map.extend(tensors.keys().map(|tensor| (tensor.clone(), json!(name))));
    }
    let index = json!({"metadata": {"total_size": 0}, "weight_map": map}).to_string().into_bytes();
    tiny.settings.insert(format!("{TRANSFORMER}.index.json"), index);
    tiny.weights.insert(first_path, first);
    tiny.weights.insert(SECOND_SHARD.to_owned(), second);
}

/// Matrices in eight bits with a scale each, and the mark of such files.
fn in_eight_bits(tiny: &mut Tiny) {
    let tensors = tensors(tiny, TRANSFORMER);
    let matrices: Vec<String> = tensors
        .iter()
        .filter(|(name, tensor)| tensor.shape.len() == 2 && name.ends_with(".weight"))
        .map(|(name, _)| name.clone())
        .collect();
    for name in matrices {
        let tensor = tensors.get_mut(&name).unwrap();
        let largest = tensor.numbers.iter().fold(0_f32, |max, number| max.max(number.abs()));
        let scale = largest / 448.0;
        tensor.numbers.iter_mut().for_each(|number| *number /= scale);
        tensor.dtype = "F8_E4M3";
        let scale = Numbers { shape: Vec::new(), numbers: vec![scale], dtype: "F32" };
        tensors.insert(name.replace(".weight", ".scale_weight"), scale);
    }
    let mark = Numbers { shape: vec![0], numbers: Vec::new(), dtype: "F8_E4M3" };
    tensors.insert("scaled_fp8".to_owned(), mark);
}

fn without(tiny: &mut Tiny, path: &str, ending: &str) {
    tensors(tiny, path).retain(|name, _| !name.ends_with(ending));
}

/// Turns the sign of what lies between the two halves of the autoencoder: as good, and of another family.
fn turn_latents(tiny: &mut Tiny, layers: [&str; 2]) {
    for name in layers {
        let tensor = tensors(tiny, VAE).get_mut(name).unwrap();
        tensor.numbers.iter_mut().for_each(|number| *number = -*number);
    }
}

/// What can happen to any transformer and its parts.
fn of_all() -> Vec<Mutation> {
    vec![
        mutation("two tensors of one shape swapped: to_q and to_out of a block", |tiny| {
            let names = ["transformer_blocks.0.attn.to_q.weight", "transformer_blocks.0.attn.to_out.0.weight"];
            let audio = names.map(|name| name.replace(".attn.", ".attn1."));
            let names = if tensors(tiny, TRANSFORMER).contains_key(names[0]) {
                names
            } else {
                audio.each_ref().map(String::as_str)
            };
            swap(tiny, TRANSFORMER, names);
        }),
        mutation("two tensors of different shapes swapped", |tiny| {
            swap(tiny, TRANSFORMER, ["proj_out.weight", "transformer_blocks.0.ff.net.2.weight"]);
        }),
        Mutation {
            what: "8 bits: one scale dropped",
            stored: Some(in_eight_bits),
            damage: |tiny| without(tiny, TRANSFORMER, "blocks.0.ff.net.2.scale_weight"),
        },
        Mutation {
            what: "8 bits: all scales dropped",
            stored: Some(in_eight_bits),
            damage: |tiny| without(tiny, TRANSFORMER, ".scale_weight"),
        },
        Mutation {
            what: "8 bits: all scales dropped, and the mark of scaled files",
            stored: Some(in_eight_bits),
            damage: |tiny| {
                without(tiny, TRANSFORMER, ".scale_weight");
                without(tiny, TRANSFORMER, "scaled_fp8");
            },
        },
        mutation("a square matrix transposed: of the timestep's code", |tiny| {
            let name = ["time_text_embed.timestep_embedder.linear_2.weight", "timestep_proj.2.weight"]
                .into_iter()
                .find(|name| tiny.weights[TRANSFORMER].contains_key(*name));
            transpose(tiny, TRANSFORMER, name.unwrap(), true);
        }),
        mutation("a matrix transposed, and its header says so", |tiny| {
            transpose(tiny, TRANSFORMER, "proj_out.weight", true);
        }),
        mutation("a matrix transposed, and its header does not say so", |tiny| {
            transpose(tiny, TRANSFORMER, "proj_out.weight", false);
        }),
        Mutation {
            what: "one of two shards full of zeros",
            stored: Some(shard),
            damage: |tiny| zero(tensors(tiny, SECOND_SHARD), ""),
        },
        Mutation {
            what: "one of two shards missing",
            stored: Some(shard),
            damage: |tiny| drop(tiny.weights.remove(SECOND_SHARD)),
        },
        mutation("a tensor with an undefined number", |tiny| {
            tensors(tiny, TRANSFORMER).get_mut("transformer_blocks.1.ff.net.2.weight").unwrap().numbers[5] = f32::NAN;
        }),
        mutation("the autoencoder full of zeros", |tiny| zero(tensors(tiny, VAE), "")),
        mutation("the autoencoder untrained", |tiny| redraw(tensors(tiny, VAE), "")),
        mutation("only the autoencoder's decoder untrained", |tiny| redraw(tensors(tiny, VAE), "decoder.")),
        mutation("the transformer untrained", |tiny| redraw(tensors(tiny, TRANSFORMER), "")),
        mutation("the text encoder full of zeros", |tiny| zero(tensors(tiny, "text_encoder/model.safetensors"), "")),
        mutation("another text encoder of the same sizes", |tiny| {
            redraw(tensors(tiny, "text_encoder/model.safetensors"), "");
        }),
        mutation("random weights everywhere", |tiny| {
            let paths: Vec<String> = tiny.weights.keys().cloned().collect();
            paths.iter().for_each(|path| redraw(tensors(tiny, path), ""));
        }),
    ]
}

fn pictures() -> Family {
    let mut mutations = of_all();
    mutations.extend([
        mutation("two tensors of the autoencoder swapped", |tiny| {
            let names = ["decoder.up_blocks.0.upsamplers.0.conv.weight", "decoder.mid_block.resnets.0.conv1.weight"];
            swap(tiny, VAE, names);
        }),
        mutation("an autoencoder of more latent channels", |tiny| {
            let tensor = tensors(tiny, VAE).get_mut("encoder.conv_out.weight").unwrap();
            tensor.shape[0] *= 2;
            tensor.numbers = tensor.numbers.repeat(2);
        }),
        mutation("another autoencoder of the same sizes, trained: latents of another sign", |tiny| {
            turn_latents(tiny, ["encoder.conv_out.weight", "decoder.conv_in.weight"]);
        }),
        mutation("the two CLIP text encoders swapped", |tiny| {
            let [one, other] = ["text_encoder", "text_encoder_2"].map(|part| format!("{part}/model.safetensors"));
            let a = tiny.weights.remove(&one).unwrap();
            let b = tiny.weights.insert(other, a).unwrap();
            tiny.weights.insert(one, b);
        }),
        mutation("T5 full of zeros", |tiny| zero(tensors(tiny, "text_encoder_3/model.safetensors"), "")),
    ]);
    let levels = &[Level::Component, Level::Generate];
    Family {
        title: "Stable Diffusion 3.5",
        smoke: "stable-diffusion-3-any-size",
        levels,
        base: Tiny::pictures,
        mutations,
    }
}

fn sounds() -> Family {
    let mut mutations = of_all();
    mutations.extend([
        mutation("two tensors of the autoencoder swapped", |tiny| {
            swap(tiny, VAE, ["decoder.block.1.conv_t1.weight_g", "decoder.block.1.res_unit1.conv1.weight_g"]);
        }),
        mutation("another autoencoder of the same sizes, trained: latents of another sign", |tiny| {
            turn_latents(tiny, ["encoder.conv2.weight_v", "decoder.conv1.weight_v"]);
        }),
        mutation("the projection of times untrained", |tiny| {
            redraw(tensors(tiny, "projection_model/diffusion_pytorch_model.safetensors"), "");
        }),
    ]);
    let levels = &[Level::Component, Level::Generate];
    Family { title: "Stable Audio Open", smoke: "stable-audio-any-size", levels, base: Tiny::sounds, mutations }
}

fn vocoder() -> Family {
    const FILE: &str = "bigvgan_generator.safetensors";
    let mutations = vec![
        mutation("two tensors of one shape swapped", |tiny| {
            swap(tiny, FILE, ["resblocks.0.convs1.0.weight", "resblocks.0.convs1.1.weight"]);
        }),
        mutation("two tensors of different shapes swapped", |tiny| {
            swap(tiny, FILE, ["resblocks.0.convs1.0.weight", "conv_post.weight"]);
        }),
        mutation("one block full of zeros", |tiny| zero(tensors(tiny, FILE), "resblocks.0.")),
        mutation("the last layer full of zeros", |tiny| zero(tensors(tiny, FILE), "conv_post.")),
        mutation("other random weights", |tiny| redraw(tensors(tiny, FILE), "")),
        mutation("the first layer random: deaf to the spectrogram", |tiny| redraw(tensors(tiny, FILE), "conv_pre.")),
        mutation("the bands of the spectrogram in reverse order", |tiny| {
            let tensor = tensors(tiny, FILE).get_mut("conv_pre.weight").unwrap();
            let (bands, taps) = (tensor.shape[1], tensor.shape[2]);
            for row in tensor.numbers.chunks_mut(bands * taps) {
                let reversed: Vec<f32> = row.chunks(taps).rev().flatten().copied().collect();
                row.copy_from_slice(&reversed);
            }
        }),
        mutation("the second lengthening full of zeros", |tiny| zero(tensors(tiny, FILE), "ups.1.")),
        mutation("a tensor with an undefined number", |tiny| {
            tensors(tiny, FILE).get_mut("resblocks.2.convs1.0.weight").unwrap().numbers[5] = f32::NAN;
        }),
        mutation("a tensor missing", |tiny| without(tiny, FILE, "resblocks.3.convs2.1.bias")),
    ];
    Family { title: "BigVGAN", smoke: "bigvgan", levels: &[Level::Component], base: Tiny::vocoder, mutations }
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

#[test]
#[expect(clippy::disallowed_methods, reason = "the environment says whether the page is to be written anew")]
fn every_damage_is_noticed() {
    let tables = std::thread::scope(|scope| {
        let begun = [pictures, sounds, vocoder].map(|family| scope.spawn(move || table(&family())));
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
