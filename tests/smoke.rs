//! `larder smoke` at its level *structure*: what differs is named, and what cannot be tried is said to be so.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;

use serde_json::{Value, json};

#[path = "support/parts.rs"]
mod parts;
#[expect(dead_code, reason = "each test uses a part of what the program says")]
#[path = "support/program.rs"]
mod program;
#[path = "support/sparse.rs"]
mod sparse;

use program::{INVENTORY, Lab};
use sparse::{Tensors, expected, prefixed, scaled};

/// A lab with one artifact, of which nothing is known but the names of its files.
fn lab(smoke: &str, files: &[&str]) -> Lab {
    let list: Vec<String> = files.iter().map(|path| format!("{{ path = {path:?} }}")).collect();
    let smoke = if smoke.is_empty() { String::new() } else { format!("smoke = {smoke:?}\n") };
    let manifest = format!(
        "[[artifact]]\nname = \"model\"\nstore = \"plain\"\nsource = \"local\"\n{smoke}file = [{}]\n",
        list.join(", ")
    );
    Lab::new(INVENTORY, &manifest)
}

/// The checks of a run: outcome, what was measured, details; by their names.
struct Smoked {
    code: i32,
    outcome: String,
    checks: BTreeMap<String, (String, String, Vec<String>)>,
}

impl Smoked {
    #[track_caller]
    fn of(lab: &Lab, arguments: &[&str]) -> Self {
        let level: &[&str] = if arguments.contains(&"--level") { &[] } else { &["--level", "structure"] };
        let said = lab.run(&[&["smoke", "--json"], level, arguments].concat());
        let json: Value = serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {said:?}"));
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let verdict = &json["artifacts"][0];
        let checks = verdict["checks"].as_array().unwrap().iter().map(|check| {
            let details = check["details"].as_array().unwrap().iter().map(text).collect();
            assert!(check["threshold"].is_string() && check["basis"].is_string(), "{check}");
            (text(&check["name"]), (text(&check["outcome"]), text(&check["measured"]), details))
        });
        Self { code: said.code, outcome: text(&verdict["outcome"]), checks: checks.collect() }
    }

    #[track_caller]
    fn details(&self, name: &str) -> &[String] {
        &self.checks.get(name).unwrap_or_else(|| panic!("no check {name}: {:?}", self.checks)).2
    }

    fn failed(&self) -> Vec<&str> {
        let failed = self.checks.iter().filter(|(_, (outcome, _, _))| outcome == "failed");
        failed.map(|(name, _)| name.as_str()).collect()
    }
}

#[test]
fn a_whole_model_passes_and_each_level_without_a_runner_says_so() {
    let lab = lab("flux2-vae", &["vae.safetensors"]);
    let (header, length) = sparse::header(&expected("flux2_vae.single"), "F8_E4M3");
    lab.write("home/plain/vae.safetensors", [header, vec![0x38; length as usize]].concat());
    let smoked = Smoked::of(&lab, &["model"]);
    assert_eq!((smoked.code, smoked.outcome.as_str(), smoked.failed()), (0, "passed", vec![]));
    assert!(smoked.checks["tensors of vae.safetensors"].1.starts_with("251 of 251"), "{:?}", smoked.checks);
    for level in ["component", "generate"] {
        let smoked = Smoked::of(&lab, &["--level", level]);
        assert_eq!((smoked.code, smoked.outcome.as_str()), (4, "not-possible"), "{level}");
        assert_eq!(smoked.checks[level].1, "no runner yet for flux2-vae");
    }
    // Where no level was asked for, structure is as far as it can be tried, and that is no fault.
    let smoked = Smoked::of(&lab, &["--level", "highest"]);
    assert_eq!((smoked.code, smoked.outcome.as_str(), smoked.checks.contains_key("generate")), (0, "passed", false));
    let said = lab.run(&["smoke"]);
    assert!(said.out.contains("1 passed (1 by structure alone: larder has no runner for them)"), "{}", said.out);
    assert!(!lab.path("smoke").exists(), "nothing was made");
}

#[test]
fn everything_that_differs_is_named() {
    let lab = lab("stable-diffusion-3", &["all.safetensors"]);
    let path = lab.path("home/plain/all.safetensors");
    let whole = || prefixed("model.diffusion_model.", expected("sd35_large_transformer.single"));
    let look = |tensors: &Tensors| {
        sparse::write(&path, tensors, "BF16");
        Smoked::of(&lab, &[])
    };
    let name = "tensors of all.safetensors model.diffusion_model.";
    let mut tensors = whole();
    tensors.extend(prefixed("first_stage_model.", expected("sd35_vae.single")));
    let smoked = look(&tensors);
    assert_eq!(smoked.failed(), ["written"], "a hole, and nothing else");
    assert!(smoked.checks[name].1.starts_with("923 of 923"), "{:?}", smoked.checks);
    assert!(smoked.checks.contains_key("tensors of all.safetensors first_stage_model."), "{:?}", smoked.checks);

    let mut tensors = whole();
    let gone: Vec<String> = tensors.keys().filter(|name| name.contains("joint_blocks.37.")).cloned().collect();
    gone.iter().for_each(|name| drop(tensors.remove(name)));
    let smoked = look(&tensors);
    assert_eq!(smoked.details(name).len(), gone.len(), "all of them");
    assert!(smoked.details(name).iter().all(|detail| detail.starts_with("missing: joint_blocks.37.")));

    let mut tensors = whole();
    tensors.insert("model.diffusion_model.x_embedder.proj.weight".to_owned(), vec![2432, 4, 2, 2]);
    tensors.insert("model.diffusion_model.surplus".to_owned(), vec![4]);
    let smoked = look(&tensors);
    let shape = "misshaped: x_embedder.proj.weight is [2432, 4, 2, 2], [2432, 16, 2, 2] is right";
    assert_eq!(smoked.details(name), [shape]);
    assert!(smoked.checks[name].1.ends_with("1 more that programs ignore, such as surplus"));

    sparse::write(&path, &whole(), "I32");
    let smoked = Smoked::of(&lab, &[]);
    assert_eq!((smoked.code, smoked.details(name).len()), (3, 923));
    assert!(smoked.details(name).contains(&"wrong dtype: context_embedder.bias is I32".to_owned()));
    let said = lab.run(&["smoke", "--level", "structure"]);
    assert!(said.out.contains("and 918 more; all of them with --json"), "{}", said.out);
}

#[test]
fn an_8_bit_file_without_its_scales_is_told() {
    let file = "wan2.2_i2v_low_noise_14B_fp8_scaled.safetensors";
    let lab = lab("wan2.2-i2v", &[file]);
    sparse::write(&lab.path(&format!("home/plain/{file}")), &expected("wan22_i2v_14b.single"), "F8_E4M3");
    let smoked = Smoked::of(&lab, &[]);
    assert_eq!(smoked.failed(), [&format!("scales of {file}"), "written"]);
    assert!(
        smoked.details(&format!("scales of {file}")).contains(&"without its scale: blocks.0.ffn.0.weight".to_owned())
    );
}

#[test]
fn each_form_of_8_bit_files_is_whole_or_told() {
    let of = |file: &'static str, typed: &sparse::Typed, metadata: &[(&str, String)]| {
        let lab = lab("wan2.2-i2v", &[file]);
        sparse::write_typed(&lab.path(&format!("home/plain/{file}")), typed, metadata);
        let smoked = Smoked::of(&lab, &[]);
        let scales = smoked.details(&format!("scales of {file}")).to_vec();
        let failed: Vec<String> = smoked.failed().into_iter().map(|name| name.replace(file, "FILE")).collect();
        (scales, failed)
    };
    let wan = expected("wan22_i2v_14b.single");
    let holes = vec!["written".to_owned()];
    let faulty = vec!["scales of FILE".to_owned(), "written".to_owned()];

    let mut whole = scaled(&wan, "scale_weight");
    whole.insert("scaled_fp8".to_owned(), ("F8_E4M3", vec![2]));
    assert_eq!(of("low_noise_14B_fp8_scaled.safetensors", &whole, &[]), (vec![], holes.clone()));
    // Without words in its name: the mark tells that scales must be there.
    whole.remove("blocks.7.cross_attn.k.scale_weight");
    let without = vec!["without its scale: blocks.7.cross_attn.k.weight".to_owned()];
    assert_eq!(of("renamed.safetensors", &whole, &[]), (without.clone(), faulty.clone()));
    whole.retain(|name, _| !name.ends_with(".scale_weight"));
    assert!(of("renamed.safetensors", &whole, &[]).0.len() > 400, "all of them");

    let layers = |format: &str| {
        let layer = serde_json::json!({ "format": format });
        let layers = serde_json::json!({ "layers": { "blocks.7.cross_attn.k": layer } });
        [("_quantization_metadata", layers.to_string())]
    };
    let mut mixed = scaled(&wan, "weight_scale");
    assert_eq!(of("i2v_fp8mixed.safetensors", &mixed, &layers("float8_e4m3fn")), (vec![], holes.clone()));
    let format = vec!["of a format that is not read, nvfp4: blocks.7.cross_attn.k".to_owned()];
    assert_eq!(of("i2v_fp8mixed.safetensors", &mixed, &layers("nvfp4")), (format, faulty.clone()));
    mixed.retain(|name, _| !name.ends_with(".weight_scale"));
    let (scales, failed) = of("renamed.safetensors", &mixed, &layers("float8_e4m3fn"));
    assert_eq!((scales, failed), (without, faulty.clone()), "what the header declares must be there");
    mixed.insert("blocks.7.cross_attn.k.comfy_quant".to_owned(), ("U8", vec![27]));
    let (scales, _) = of("renamed.safetensors", &mixed, &[]);
    assert_eq!(scales, ["not a format: blocks.7.cross_attn.k.comfy_quant"], "it is a hole");

    let plain: sparse::Typed = wan.iter().map(|(name, shape)| (name.clone(), ("F8_E4M3", shape.clone()))).collect();
    assert_eq!(of("i2v_fp8_e4m3fn.safetensors", &plain, &[]), (vec![], holes));
    let named = vec!["element type of FILE".to_owned(), "written".to_owned()];
    assert_eq!(of("i2v_bf16.safetensors", &plain, &[]).1, named, "another edition under this name");
}

/// Everything that a diffusers folder of SD 3.5 has; weights are holes.
const PIPELINE: [&str; 15] = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "text_encoder_2/config.json",
    "text_encoder_2/model.safetensors",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "tokenizer_2/vocab.json",
    "tokenizer_2/merges.txt",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    "tokenizer/tokenizer_config.json",
];

fn pipeline(lab: &Lab) {
    let class = |library: &str, class: &str| json!([library, class]);
    let index = json!({
        "_class_name": "StableDiffusion3Pipeline",
        "scheduler": class("diffusers", "FlowMatchEulerDiscreteScheduler"),
        "text_encoder": class("transformers", "CLIPTextModelWithProjection"),
        "text_encoder_2": class("transformers", "CLIPTextModelWithProjection"),
        "tokenizer": class("transformers", "CLIPTokenizer"),
        "tokenizer_2": class("transformers", "CLIPTokenizer"),
        "transformer": class("diffusers", "SD3Transformer2DModel"),
        "vae": class("diffusers", "AutoencoderKL"),
        "image_encoder": [null, null],
    });
    for path in PIPELINE {
        let text = match path {
            "model_index.json" => index.to_string(),
            path if path.ends_with("vocab.json") => json!({"a": 0, "b": 1, "ab": 2}).to_string(),
            path if path.ends_with("merges.txt") => "#version: 0.2\na b\n".to_owned(),
            _ => json!({"vocab_size": 49408}).to_string(),
        };
        lab.write(&format!("home/plain/{path}"), text);
    }
    for (folder, list, file) in [
        ("text_encoder", "clip_l_proj", "model"),
        ("text_encoder_2", "clip_g_proj", "model"),
        ("transformer", "sd35_large_transformer", "diffusion_pytorch_model"),
        ("vae", "sd35_vae", "diffusion_pytorch_model"),
    ] {
        sparse::write(&lab.path(&format!("home/plain/{folder}/{file}.safetensors")), &expected(list), "F16");
    }
}

#[test]
fn a_diffusers_folder_must_be_complete_and_its_parts_must_fit() {
    let lab = lab("stable-diffusion-3", &PIPELINE);
    pipeline(&lab);
    let smoked = Smoked::of(&lab, &[]);
    assert_eq!(smoked.failed(), ["written"], "holes, and nothing else: {:?}", smoked.checks);
    assert_eq!(smoked.checks["folder"].1, "7 components");

    // Another model's autoencoder: of the same names, but of 32 channels.
    let vae = lab.path("home/plain/vae/diffusion_pytorch_model.safetensors");
    sparse::write(&vae, &expected("flux2_vae"), "F16");
    let name = "tensors of vae/diffusion_pytorch_model.safetensors";
    let smoked = Smoked::of(&lab, &[]);
    assert!(smoked.details(name).iter().any(|detail| detail.starts_with("misshaped: decoder.conv_in.weight")));
    // Of another family altogether.
    sparse::write(&vae, &expected("wan21_vae"), "F16");
    let smoked = Smoked::of(&lab, &[]);
    assert!(smoked.details(name)[0].starts_with("its names are of none of"), "{:?}", smoked.checks);

    pipeline(&lab);
    lab.write("home/plain/tokenizer/vocab.json", json!({"a": 0, "b": 60_000}).to_string());
    lab.write("home/plain/tokenizer_2/merges.txt", "#version: 0.2\nonly-one\n");
    lab.write("home/plain/scheduler/scheduler_config.json", "{\"cut");
    let smoked = Smoked::of(&lab, &[]);
    let wrong = ["settings", "tokenizer tokenizer/vocab.json", "tokenizer tokenizer_2/vocab.json", "written"];
    assert_eq!(smoked.failed(), wrong);
    assert!(smoked.details(wrong[1])[0].contains("token 60000 is beyond the model's vocabulary of 49408"));
}

#[test]
fn a_component_without_its_files_is_named() {
    let kept: Vec<&str> = PIPELINE
        .into_iter()
        .filter(|path| !["vae/diffusion_pytorch_model.safetensors", "tokenizer_2/merges.txt"].contains(path))
        .collect();
    let lab = lab("stable-diffusion-3", &kept);
    pipeline(&lab);
    let smoked = Smoked::of(&lab, &[]);
    assert_eq!(
        smoked.details("folder"),
        [
            "tokenizer_2/ (CLIPTokenizer) has no tokenizer.json, spiece.model, or vocab.json with merges.txt",
            "vae/ (AutoencoderKL) has no weights",
        ]
    );
}

#[test]
fn what_is_not_here_is_neither_right_nor_wrong() {
    let lab = lab("flux2", &["a.safetensors"]);
    let smoked = Smoked::of(&lab, &[]);
    assert_eq!((smoked.code, smoked.outcome.as_str()), (4, "not-possible"));
    let said = lab.run(&["smoke", "nobody"]);
    assert_eq!(said.code, 2, "{said:?}");
}

#[test]
fn an_unsafe_pickle_fails() {
    let lab = lab("mmaudio", &["weights.pth"]);
    let bad = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pickles/bad/zip.pth");
    lab.write("home/plain/weights.pth", fs_err::read(bad).unwrap());
    let smoked = Smoked::of(&lab, &[]);
    assert_eq!((smoked.code, smoked.failed()), (3, vec!["pickles"]));
    assert!(smoked.details("pickles")[0].contains("imports system from posix"));
}

#[test]
fn a_real_model_and_its_tokenizer_pass() {
    let files = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "modules.json"];
    let Some(folder) = parts::part("minilm/model.safetensors") else { return };
    let read = |name: &str| fs_err::read(folder.with_file_name(name)).unwrap();
    let lab = lab("", &files);
    files.iter().for_each(|name| lab.write(&format!("home/plain/{name}"), read(name)));
    let smoked = Smoked::of(&lab, &[]);
    assert_eq!((smoked.code, smoked.failed()), (0, vec![]), "{:?}", smoked.checks);
    assert_eq!(smoked.checks["tokenizer tokenizer.json"].1, "30522 tokens, the highest is 30521");
    let mut config: Value = serde_json::from_slice(&read("config.json")).unwrap();
    config["vocab_size"] = json!(30_000);
    lab.write("home/plain/config.json", config.to_string());
    assert_eq!(Smoked::of(&lab, &[]).failed(), ["tokenizer tokenizer.json"]);
}

/// A small language model in GGUF with these blocks.
fn gguf(architecture: &str, count: u32, blocks: &[u32]) -> Vec<u8> {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let mut names = vec!["token_embd.weight".to_owned(), "output_norm.weight".to_owned()];
    for block in blocks {
        names.extend(["attn_norm", "attn_output", "ffn_down"].map(|part| format!("blk.{block}.{part}.weight")));
    }
    let tokens = [[9_u32, 8].map(u32::to_le_bytes).concat(), 32_u64.to_le_bytes().to_vec()];
    let mut file = [
        b"GGUF\x03\0\0\0".to_vec(),
        (names.len() as u64).to_le_bytes().to_vec(),
        3_u64.to_le_bytes().to_vec(),
        text("general.architecture"),
        8_u32.to_le_bytes().to_vec(),
        text(architecture),
        text(&format!("{architecture}.block_count")),
        4_u32.to_le_bytes().to_vec(),
        count.to_le_bytes().to_vec(),
        text("tokenizer.ggml.tokens"),
        tokens.concat(),
        (0..32).flat_map(|token: u32| text(&token.to_string())).collect(),
    ]
    .concat();
    for (index, name) in names.iter().enumerate() {
        file.extend(text(name));
        file.extend(2_u32.to_le_bytes());
        file.extend([4_u64, 32].map(u64::to_le_bytes).concat());
        file.extend(0_u32.to_le_bytes());
        file.extend((index as u64 * 512).to_le_bytes());
    }
    file.resize(file.len().next_multiple_of(32) + names.len() * 512, 1);
    file
}

#[test]
fn a_language_model_must_be_the_wanted_one_with_all_its_blocks() {
    let lab = lab("qwen3", &["model.gguf"]);
    lab.write("home/plain/model.gguf", gguf("qwen3", 2, &[0, 1]));
    let smoked = Smoked::of(&lab, &[]);
    assert_eq!((smoked.code, smoked.failed()), (0, vec![]), "{:?}", smoked.checks);
    assert_eq!(smoked.checks["tokenizer of model.gguf"].1, "32 tokens");
    lab.write("home/plain/model.gguf", gguf("llama", 3, &[0, 2]));
    let smoked = Smoked::of(&lab, &[]);
    assert_eq!(smoked.failed(), ["architecture of model.gguf", "tensors of model.gguf"]);
    assert_eq!(smoked.details("tensors of model.gguf").len(), 3);
}
