//! The repository's own manifests and inventory: they parse, name every row of the lab's document, and carry
//! every size and digest that the public records have.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use larder::artifact::Reference;
use larder::digest::Sha256;
use larder::inventory::{Inventory, Layout, Selector, SourceKind};
use larder::manifest::{Declared, DeclaredFile, Manifests, Requirement};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn manifest_files() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root().join("manifests")).unwrap();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn manifests() -> Manifests {
    Manifests::read(&manifest_files()).unwrap_or_else(|errors| panic!("{errors:#?}"))
}

fn inventory() -> Inventory {
    Inventory::read(&root().join("inventory.toml")).unwrap_or_else(|errors| panic!("{errors:#?}"))
}

fn artifact<'a>(manifests: &'a Manifests, name: &str) -> &'a Declared {
    manifests.artifact(name).unwrap_or_else(|| panic!("no artifact is called {name}"))
}

/// The document's rows: the artifact that stands for each, the path or source it must name, and the size as printed.
const DOCUMENT: &[(&str, &str, &str)] = &[
    // 1. Ollama
    ("llama-guard3:1b", "ollama:llama-guard3:1b", "1.6 GB"),
    ("qwen3:1.7b", "ollama:qwen3:1.7b", "1.4 GB"),
    ("qwen3-vl:2b", "ollama:qwen3-vl:2b", "1.9 GB"),
    ("qwen3:4b", "ollama:qwen3:4b", "3.0 GB"),
    ("llama3.2-vision:latest", "ollama:llama3.2-vision:latest", "7.8 GB"),
    // 2. Hugging Face / Diffusers
    ("sd35-large", "hf:stabilityai/stable-diffusion-3.5-large@", "26 GB"),
    ("sd35-large-turbo", "hf:stabilityai/stable-diffusion-3.5-large-turbo@", "55 GB"),
    ("wan22-ti2v-5b", "hf:Wan-AI/Wan2.2-TI2V-5B-Diffusers@", "32 GB"),
    ("stable-audio-open-1.0", "hf:stabilityai/stable-audio-open-1.0@", "9.5 GB"),
    ("clip-vit-l14", "hf:openai/clip-vit-large-patch14@", "1.6 GB"),
    ("dfn5b-clip-h14", "hf:apple/DFN5B-CLIP-ViT-H-14-384@", "3.7 GB"),
    ("bigvgan-v2-44k", "hf:nvidia/bigvgan_v2_44khz_128band_512x@", "467 MB"),
    ("sd35-large-turbo-extra", "", "~16 GB"),
    ("sd35-large-extra", "", "~1.6 GB, partial"),
    // 3. HeartMuLa
    ("heartmula-oss-3b", "model-00001-of-00004.safetensors", "14.7 GB (4 files)"),
    ("heartmula-oss-3b", "model-00002-of-00004.safetensors", "14.7 GB (4 files)"),
    ("heartmula-oss-3b", "model-00003-of-00004.safetensors", "14.7 GB (4 files)"),
    ("heartmula-oss-3b", "model-00004-of-00004.safetensors", "14.7 GB (4 files)"),
    ("heartcodec-oss", "model-00001-of-00002.safetensors", "6.2 GB (2 files)"),
    ("heartcodec-oss", "model-00002-of-00002.safetensors", "6.2 GB (2 files)"),
    ("heartmula-gen", "tokenizer.json", "8.7 MB (tokenizer.json)"),
    // 4. MMAudio
    ("mmaudio-large-44k-v2", "weights/mmaudio_large_44k_v2.pth", "3.9 GB"),
    ("mmaudio-vae-44k", "ext_weights/v1-44.pth", "1.2 GB"),
    ("mmaudio-synchformer", "ext_weights/synchformer_state_dict.pth", "907 MB"),
    // 5. SwarmUI. The document's ... in two paths is written out as the repository has it.
    ("flux2-dev", "Stable-Diffusion/Flux1/flux2-dev.safetensors", "61 GB"),
    ("flux2-dev-fp8mixed", "Stable-Diffusion/Flux1/flux2_dev_fp8mixed.safetensors", "34 GB"),
    ("sd35-large-single", "Stable-Diffusion/OfficialStableDiffusion/sd3.5_large.safetensors", "16 GB"),
    ("ltxv-13b-097-dev-fp8", "Stable-Diffusion/ltxv-13b-0.9.7-dev-fp8.safetensors", "15 GB"),
    ("ace-step-v1-3.5b", "Stable-Diffusion/ace_step_v1_3.5b.safetensors", "7.2 GB"),
    ("stable-audio-single", "Stable-Diffusion/OfficialStableDiffusion/stableaudio_model.safetensors", "4.6 GB"),
    ("mistral3-small-flux2-bf16", "clip/mistral_3_small_flux2_bf16.safetensors", "34 GB"),
    ("mistral3-small-flux2-fp8", "clip/mistral_3_small_flux2_fp8.safetensors", "17 GB"),
    ("qwen25-vl-7b-bf16", "clip/qwen_image_official/split_files/text_encoders/qwen_2.5_vl_7b.safetensors", "16 GB"),
    ("t5xxl-fp16", "clip/t5xxl_fp16.safetensors", "9.2 GB"),
    ("qwen25-vl-7b-fp8", "clip/qwen_2.5_vl_7b_fp8_scaled.safetensors", "8.8 GB"),
    ("qwen3-4b-te", "clip/qwen_3_4b.safetensors", "7.5 GB"),
    ("t5xxl-enconly", "clip/t5xxl_enconly.safetensors", "4.6 GB"),
    ("clip-g", "clip/clip_g.safetensors", "1.3 GB"),
    ("clip-l", "clip/clip_l.safetensors", "235 MB"),
    (
        "qwen-image-bf16",
        "diffusion_models/qwen_image_official/split_files/diffusion_models/qwen_image_bf16.safetensors",
        "39 GB",
    ),
    ("qwen-image-fp8", "diffusion_models/qwen_image_fp8_e4m3fn.safetensors", "20 GB"),
    ("qwen-image-edit-2511-fp8mixed", "diffusion_models/qwen_image_edit_2511_fp8mixed.safetensors", "20 GB"),
    ("wan22-i2v-low-fp8", "diffusion_models/wan2.2_i2v_low_noise_14B_fp8_scaled.safetensors", "14 GB"),
    ("wan22-i2v-high-fp8", "diffusion_models/wan2.2_i2v_high_noise_14B_fp8_scaled.safetensors", "14 GB"),
    ("wan22-ti2v-5b-fp16", "diffusion_models/wan2.2_ti2v_5B_fp16.safetensors", "9.4 GB"),
    ("ltxv-vae", "vae/LTXV/ltxv_vae.safetensors", "2.4 GB"),
    ("wan22-vae", "vae/wan2.2_vae.safetensors", "1.4 GB"),
    ("vae-unnamed", "vae/diffusion_pytorch_model.safetensors", "596 MB"),
    ("flux2-vae", "vae/Flux/flux2-vae.safetensors", "321 MB"),
    ("wan21-vae", "vae/wan_2.1_vae.safetensors", "243 MB"),
    ("wan22-lightx2v-loras", "loras/wan2.2_i2v_lightx2v_4steps_lora_v1_high_noise.safetensors", "4.8 GB (4 files)"),
    ("qwen-edit-lightning", "loras/Qwen-Image-Edit-Lightning-4steps-V1.0-bf16.safetensors", "1.6 GB (2 files)"),
    ("sd35-solarization-lora", "loras/sd35_solarization*.safetensors", "1.6 GB (5 files)"),
    ("sd35-cooked-negatives-lora", "loras/sd3.5-large_cooked_negatives*.safetensors", "1.6 GB (5 files)"),
    ("flux2-berthe-morisot", "loras/flux2_berthe_morisot.safetensors", "373 MB"),
];

#[test]
fn every_row_of_the_document_is_declared() {
    let manifests = manifests();
    for (name, what, size) in DOCUMENT {
        let artifact = artifact(&manifests, name);
        assert_eq!(artifact.documented.as_deref(), Some(*size), "{name}");
        let source = artifact.source.as_ref().map(ToString::to_string).unwrap_or_default();
        let is_named = source.starts_with(what)
            || artifact.file.iter().any(|file| file.path.as_str() == *what)
            || artifact.pattern.as_ref().is_some_and(|pattern| pattern.glob == *what);
        assert!(is_named, "{name} does not name {what}");
    }
}

#[test]
fn nothing_else_passes_for_a_row_of_the_document() {
    let known: BTreeSet<&str> = DOCUMENT.iter().map(|row| row.0).collect();
    let manifests = manifests();
    let mut others: Vec<&str> = Vec::new();
    for artifact in &manifests.artifacts {
        let marked = ["not-in-document", "newer-edition"].iter().any(|tag| artifact.tags.iter().any(|own| own == tag));
        if !known.contains(artifact.name.as_str()) && !marked {
            others.push(&artifact.name);
        }
    }
    // The second file of a glob that does not match it, and the two spaCy models of the document's section 6.
    assert_eq!(others, ["de_core_news_lg", "xx_ent_wiki_sm", "qwen-edit-2511-lightning"]);
}

/// Part of the document, its artifacts, and how many files there are, have an exact size, a sha256, and both.
type Coverage = (&'static str, &'static [&'static str], [usize; 4]);

/// The records' own coverage, counted file by file. Where the manifests count differently:
/// - Stable Audio has 13 files on record: two of them are the globs `tokenizer/*.json` and `scheduler/*.json`, which
///   stand in `include`; two are .ckpt files that the lab does not have, declared as an artifact of their own.
/// - HeartMuLa has 7 files in the document; five more that heartlib needs are declared here, two of them with sizes.
const COVERAGE: &[Coverage] = &[
    ("SD3.5 Large", &["sd35-large"], [28, 28, 28, 28]),
    ("SD3.5 Large Turbo", &["sd35-large-turbo"], [33, 6, 3, 3]),
    ("Wan2.2 TI2V 5B", &["wan22-ti2v-5b"], [21, 21, 21, 21]),
    ("Stable Audio Open", &["stable-audio-open-1.0", "stable-audio-open-1.0-ckpt"], [13 - 2, 3, 9, 3]),
    ("CLIP, DFN5B, BigVGAN", &["clip-vit-l14", "dfn5b-clip-h14", "bigvgan-v2-44k"], [12, 12, 11, 11]),
    ("HeartMuLa", &["heartmula-oss-3b", "heartcodec-oss", "heartmula-gen"], [7 + 5, 2 + 2, 0, 0]),
    ("MMAudio", &["mmaudio-large-44k-v2", "mmaudio-vae-44k", "mmaudio-synchformer"], [3, 3, 3, 3]),
];

const SWARMUI_COVERAGE: &[(&str, [usize; 4])] = &[
    ("swarmui-stable-diffusion", [6, 5, 5, 5]),
    ("swarmui-clip", [9, 9, 9, 9]),
    ("swarmui-diffusion-models", [6, 6, 6, 6]),
    ("swarmui-vae", [5, 3, 4, 3]),
    ("swarmui-loras", [17, 6, 6, 6]),
];

fn coverage<'a>(artifacts: impl Iterator<Item = &'a Declared>) -> [usize; 4] {
    let mut counts = [0; 4];
    for artifact in artifacts {
        let has = |test: fn(&DeclaredFile) -> bool| artifact.file.iter().filter(|file| test(file)).count();
        counts[0] += artifact.file.len() + artifact.pattern.as_ref().map_or(0, |pattern| pattern.count);
        counts[1] += has(|file| file.size.is_some());
        counts[2] += has(|file| file.sha256.is_some());
        counts[3] += has(|file| file.size.is_some() && file.sha256.is_some());
    }
    counts
}

#[test]
fn files_sizes_and_digests_are_as_many_as_on_record() {
    let manifests = manifests();
    let mut sum = [0; 4];
    for (part, names, expected) in COVERAGE {
        let found = coverage(names.iter().map(|name| artifact(&manifests, name)));
        assert_eq!(found, *expected, "{part}");
        (0..4).for_each(|index| sum[index] += found[index]);
    }
    for (section, expected) in SWARMUI_COVERAGE {
        let inside = manifests.artifacts.iter().filter(|artifact| artifact.section.as_deref() == Some(section));
        let found = coverage(inside);
        assert_eq!(found, *expected, "{section}");
        (0..4).for_each(|index| sum[index] += found[index]);
    }
    // Ollama: 5 images, 4 of them with an exact total, all with the manifest's digest.
    let images = manifests.artifacts.iter().filter(|artifact| artifact.section.as_deref() == Some("ollama"));
    let images: Vec<&Declared> = images.collect();
    let has = |test: fn(&Declared) -> bool| images.iter().filter(|image| test(image)).count();
    let ollama = [images.len(), has(|i| i.total.is_some()), has(|i| i.manifest.is_some()), 4];
    assert_eq!(ollama, [5, 4, 5, 4]);
    // Python: 6 packages; 3 with a size; 5 with a digest, two of them the spaCy wheels.
    let documented = ["torch", "diffusers", "transformers", "spacy", "de_core_news_lg", "xx_ent_wiki_sm"];
    let packages: Vec<_> =
        manifests.packages.iter().filter(|package| documented.contains(&package.name.as_str())).collect();
    let sized = packages.iter().filter(|package| package.size.is_some()).count();
    let in_index = packages.iter().filter(|package| package.sha256.is_some()).count();
    let as_files = coverage(["de_core_news_lg", "xx_ent_wiki_sm"].iter().map(|name| artifact(&manifests, name)))[2];
    assert_eq!([packages.len(), sized, in_index + as_files], [6, 3, 5]);
    // 171 files in all, 111 exact sizes, 115 digests, 105 with both; the differences are those named above.
    let other = [ollama, [6, 3, 5, 3]];
    let all: Vec<usize> = (0..4).map(|index| sum[index] + other[0][index] + other[1][index]).collect();
    assert_eq!(all, [171 - 2 + 5, 111 + 2, 115, 105]);
}

/// Every digest in the manifests, with its size where it has one.
fn pins(manifests: &Manifests) -> BTreeSet<(String, Option<u64>)> {
    let images = manifests.artifacts.iter().map(|artifact| (artifact.manifest, artifact.total));
    let files =
        manifests.artifacts.iter().flat_map(|artifact| artifact.file.iter().map(|file| (file.sha256, file.size)));
    let wheels = manifests.packages.iter().flat_map(|package| {
        let others = package.other_wheels.iter().map(|wheel| (wheel.sha256, wheel.size));
        std::iter::once((package.sha256, package.size)).chain(others)
    });
    images
        .chain(files)
        .chain(wheels)
        .filter_map(|(digest, size)| Some((digest?.to_string(), size.map(|size| size.0))))
        .collect()
}

/// Digests that the records mention only in passing: spaCy for other Pythons, and hy3dgen.
const IN_PASSING: [&str; 3] = [
    "f860f9d51c1aeb2d61852442b232576e4ca4d239cb3d1b40ac452118b8eb2c68",
    "94632e302ad2fb79dc285bf1e9e4d4a178904d5c67049e0e02b7fb4a77af85c4",
    "92931c9f99ab4679b5f0475bf37ffd0822b3c0739b0feb58b76800ca7ee6df23",
];

#[test]
fn every_digest_on_record_is_carried_with_its_size() {
    let manifests = manifests();
    let mut pins = pins(&manifests);
    assert_eq!(pins.len(), 118 + IN_PASSING.len());
    pins.retain(|(digest, _)| !IN_PASSING.contains(&digest.as_str()));
    let lines: Vec<String> = pins
        .iter()
        .map(|(digest, size)| format!("{digest} {}", size.map_or("-".to_owned(), |size| size.to_string())))
        .collect();
    // SHA-256 over the catalogue's own digests and sizes, sorted, one pair a line: any change of a pin shows here.
    let fingerprint = Sha256::of(lines.join("\n").as_bytes()).to_string();
    assert_eq!(fingerprint, "d0ed68d6e1a84ab8d9143b00dd4ec45540db9c47ab8fa80fc81b511d12fd2173");
}

fn file<'a>(manifests: &'a Manifests, name: &str, path: &str) -> &'a DeclaredFile {
    let files = &artifact(manifests, name).file;
    files.iter().find(|file| file.path.as_str() == path).unwrap_or_else(|| panic!("{name} has no {path}"))
}

#[test]
fn some_values_as_the_records_have_them() {
    let manifests = manifests();
    let index = file(&manifests, "sd35-large", "model_index.json");
    assert_eq!(index.size.unwrap().0, 706);
    assert_eq!(index.git_sha1.unwrap().to_string(), "d1e85db2887d95ee9e0f6206771a4c52f9233e2f");
    let mmaudio = file(&manifests, "mmaudio-large-44k-v2", "weights/mmaudio_large_44k_v2.pth");
    assert_eq!(mmaudio.size.unwrap().0, 4_122_474_715);
    assert_eq!(mmaudio.md5.unwrap().to_string(), "01ad4464f049b2d7efdaa4c1a59b8dfe");
    let with_md5 = manifests.artifacts.iter().flat_map(|artifact| &artifact.file).filter(|file| file.md5.is_some());
    assert_eq!(with_md5.count(), 3);
    let t5 = file(&manifests, "t5xxl-enconly", "clip/t5xxl_enconly.safetensors");
    let source = "hf:mcmonkey/google_t5-v1_1-xxl_encoderonly/t5xxl_fp8_e4m3fn.safetensors";
    assert_eq!(t5.source.as_ref().unwrap().to_string(), source);
    let image = artifact(&manifests, "qwen3:4b");
    assert_eq!(image.total.unwrap().0, 2_497_293_931);
    assert!(image.manifest.unwrap().to_string().starts_with("359d7dd4bcda"), "the ID that ollama list prints");
    for layer in manifests.artifacts.iter().filter(|a| a.manifest.is_some()).flat_map(|a| &a.file) {
        assert_eq!(layer.path.as_str(), format!("sha256:{}", layer.sha256.unwrap()), "a layer's path is its digest");
    }
}

#[test]
fn what_is_not_on_record_stays_absent() {
    let manifests = manifests();
    for name in ["heartmula-oss-3b", "heartmula-gen", "vae-unnamed", "ltxv-13b-097-dev-fp8", "flux2-berthe-morisot"] {
        let artifact = artifact(&manifests, name);
        assert!(artifact.file.iter().all(|file| file.size.is_none() && file.digests().is_empty()), "{name}");
    }
    for name in ["sd35-solarization-lora", "sd35-cooked-negatives-lora"] {
        let artifact = artifact(&manifests, name);
        assert_eq!(artifact.source, Some(Reference::Local), "{name} has no upstream");
        assert_eq!(artifact.pattern.as_ref().unwrap().count, 5);
    }
    assert_eq!(artifact(&manifests, "heartmula-oss-3b").alternatives.len(), 3);
    assert_eq!(artifact(&manifests, "vae-unnamed").source, Some(Reference::Unidentified));
}

#[test]
fn gates_are_those_on_record() {
    let manifests = manifests();
    let gated: BTreeSet<String> = manifests
        .artifacts
        .iter()
        .filter(|artifact| artifact.gated)
        .flat_map(|artifact| artifact.source.iter().chain(artifact.file.iter().filter_map(|file| file.source.as_ref())))
        .map(Reference::authority)
        .collect();
    let expected = [
        "hf:black-forest-labs/FLUX.2-dev",
        "hf:google/gemma-2-2b-it",
        "hf:meta-llama/Llama-3.2-3B-Instruct",
        "hf:stabilityai/stable-audio-open-1.0",
        "hf:stabilityai/stable-diffusion-3.5-large",
        "hf:stabilityai/stable-diffusion-3.5-large-turbo",
    ];
    assert_eq!(gated.iter().map(String::as_str).collect::<Vec<_>>(), expected);
}

#[test]
fn the_documents_notes_are_data() {
    let manifests = manifests();
    let condition = |name: &str| &manifests.conditions.iter().find(|known| known.name == name).unwrap().require;
    assert!(
        matches!(condition("heartmula-clamp"), Requirement::TextPresent { file, .. } if file.ends_with("flow_matching.py"))
    );
    assert!(
        matches!(condition("heartmula-no-outer-autocast"), Requirement::TextAbsent { text, .. } if text == "autocast")
    );
    assert!(matches!(condition("exactly-two-spacy-models"), Requirement::OnlyPackages { only, .. } if only.len() == 2));
    assert_eq!(manifests.conditions.len(), 3);
    let cloud: Vec<&str> = manifests.cloud.iter().map(|model| model.name.as_str()).collect();
    let variables = [
        "REMOTE_FAST_MODEL",
        "REMOTE_ADVANCED_MODEL",
        "REMOTE_EXTREME_MODEL",
        "REMOTE_MULTIMODAL_MODEL",
        "CODING_MODEL",
    ];
    assert_eq!(cloud, variables);
    let kinds: BTreeSet<String> = ["sd35-large", "sd35-large-turbo", "sd35-large-single"]
        .iter()
        .map(|name| format!("{:?}", artifact(&manifests, name).download.unwrap()))
        .collect();
    assert_eq!(kinds.len(), 3, "three kinds of download of one family: {kinds:?}");
}

#[test]
fn the_documents_totals_stand_beside_the_sections() {
    let manifests = manifests();
    let said: Vec<(&str, &str)> = manifests
        .sections
        .iter()
        .filter_map(|section| Some((section.name.as_str(), section.documented.as_deref()?)))
        .collect();
    let expected = [
        ("heartmula", "~21 GB"),
        ("huggingface", "~129 GB"),
        ("huggingface-extra", "~16 GB and ~1.6 GB"),
        ("lab", "~620 GB"),
        ("mmaudio", "~6 GB"),
        ("ollama", "~16 GB"),
        ("swarmui", "~450 GB"),
        ("swarmui-stable-diffusion", "~169 GB"),
        ("swarmui-clip", "~134 GB"),
        ("swarmui-diffusion-models", "~118 GB"),
        ("swarmui-vae", "~5.4 GB"),
        ("swarmui-loras", "~9.8 GB"),
    ];
    assert_eq!(said, expected);
    assert!(manifests.sections.iter().all(|section| section.difference.is_some()));
}

#[test]
fn every_artifact_has_a_store_that_can_hold_it() {
    let (manifests, inventory) = (manifests(), inventory());
    for artifact in &manifests.artifacts {
        let store = inventory.stores.get(&artifact.store).unwrap_or_else(|| panic!("{}: no store", artifact.name));
        let fits = match &artifact.source {
            Some(Reference::Ollama(_)) => store.layout == Layout::Ollama,
            Some(Reference::Hub { .. }) => store.layout != Layout::Ollama,
            _ => store.layout == Layout::Folder,
        };
        assert!(fits, "{} cannot be kept in {}", artifact.name, artifact.store);
        assert!(!artifact.tags.is_empty() && artifact.title.is_some(), "{}", artifact.name);
    }
}

fn selected<'a>(manifests: &'a Manifests, inventory: &Inventory, profile: &str) -> Vec<&'a Declared> {
    let profile = &inventory.profiles[profile];
    let wanted = Selector::new(profile.artifacts.iter().map(String::as_str)).unwrap();
    let except = Selector::new(profile.except.iter().map(String::as_str)).unwrap();
    manifests.artifacts.iter().filter(|artifact| wanted.matches(artifact) && !except.matches(artifact)).collect()
}

fn gigabytes(artifacts: &[&Declared]) -> f64 {
    let size = |artifact: &Declared| {
        let known: u64 = artifact.file.iter().filter_map(|file| file.size).map(|size| size.0).sum();
        artifact.total.or(artifact.size).map_or(known, |size| size.0.max(known))
    };
    artifacts.iter().map(|artifact| size(artifact) as f64).sum::<f64>() / 1e9
}

#[test]
fn profiles_hold_what_they_promise() {
    let (manifests, inventory) = (manifests(), inventory());
    let workstation = selected(&manifests, &inventory, "workstation");
    // Every row of the document but the two known copies, the second Lightning file, and the two spaCy wheels.
    let rows: BTreeSet<&str> = DOCUMENT.iter().map(|row| row.0).collect();
    assert_eq!(workstation.len(), rows.len() - 2 + 1 + 2);
    for (tier, from, to) in [("tier-b", 28.0, 32.0), ("tier-c", 55.0, 66.0), ("tier-e", 320.0, 360.0)] {
        let size = gigabytes(&selected(&manifests, &inventory, tier));
        assert!((from..to).contains(&size), "{tier} has {size:.1} GB");
    }
    let safety = selected(&manifests, &inventory, "safety");
    for name in ["llama-guard3:1b", "qwen3:1.7b", "qwen3-vl:2b", "de_core_news_lg", "xx_ent_wiki_sm"] {
        assert!(safety.iter().any(|artifact| artifact.name == name), "{name} is a safety model");
    }
    for profile in ["image", "video", "audio", "tier-b", "tier-c", "tier-e"] {
        let names: Vec<&str> = selected(&manifests, &inventory, profile).iter().map(|a| a.name.as_str()).collect();
        assert!(names.contains(&"llama-guard3:1b"), "{profile} is without the safety model");
        assert!(!names.contains(&"umt5-xxl-fp8"), "{profile} has what is in no edition of the document");
    }
}

#[test]
fn a_machine_behind_a_data_cap_never_goes_upstream() {
    let inventory = inventory();
    assert_eq!(inventory.sources_of("pc2").order, [SourceKind::Drive, SourceKind::Peer]);
    assert!(inventory.sources_of("pc1").order.contains(&SourceKind::Upstream));
    let rate = |machine: &str| inventory.sources_of(machine).max_rate().unwrap().unwrap().0;
    assert_eq!((rate("pc1"), rate("pc2")), (80_000_000, 40_000_000));
}

#[test]
fn sections_packages_and_conditions_must_fit_together() {
    let complain = |text: &str| {
        let errors = Manifests::parse(Path::new("lab.toml"), text).unwrap_err();
        errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    let section =
        |name: &str, parent: &str| format!("[[section]]\nname = {name:?}\ntitle = \"T\"\npart-of = {parent:?}\n");
    assert!(complain(&section("a", "b")).contains("section `a`: `part-of` leads to no section"));
    assert!(complain(&(section("a", "b") + &section("b", "a"))).contains("or back to itself"));
    let twice = "[[section]]\nname = \"a\"\ntitle = \"T\"\n";
    assert!(complain(&twice.repeat(2)).contains("section `a` is declared twice"));
    let package = "[[package]]\nname = \"heartlib\"\nneeded-by = [\"mula\"]\n";
    assert!(complain(package).contains("package `heartlib` names the artifact `mula`, which no manifest declares"));
}
