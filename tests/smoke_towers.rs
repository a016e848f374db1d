//! `larder smoke` with CLIP, as transformers and as open_clip store it: captions must find what is drawn.
//!
//! The model is made by hand: its image tower knows the mean colour, its text tower the names of four colours.
#![cfg(feature = "smoke")]
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

#[expect(dead_code, reason = "each test uses a part of what the program says")]
#[path = "support/program.rs"]
mod program;

use program::{INVENTORY, Lab};

/// Width of both towers; the last two numbers of every state are large and opposite, so that norms change little else.
const WIDTH: usize = 8;
const LARGE: f32 = 100.0;
/// Width of the common space: red, green, blue, darkness.
const COMMON: usize = 4;
const PATCH: usize = 7;
const PATCHES: usize = 16;
/// How much the image tower's one layer adds of the picture's mean.
const GAIN: f32 = 5.0;
/// The tokens of the words for the four colours.
const COLOURS: [usize; 4] = [736, 1901, 1746, 1449];

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// A matrix that is zero but for these places.
fn matrix(rows: usize, columns: usize, places: &[(usize, usize, f32)]) -> (Vec<usize>, Vec<f32>) {
    let mut numbers = vec![0.0; rows * columns];
    places.iter().for_each(|(row, column, number)| numbers[row * columns + column] = *number);
    (vec![rows, columns], numbers)
}

fn vector(numbers: Vec<f32>) -> (Vec<usize>, Vec<f32>) {
    (vec![numbers.len()], numbers)
}

/// Positions that are all alike.
fn positions(count: usize) -> (Vec<usize>, Vec<f32>) {
    let both = |row| [(row, WIDTH - 2, LARGE), (row, WIDTH - 1, -LARGE)];
    matrix(count, WIDTH, &(0..count).flat_map(both).collect::<Vec<_>>())
}

/// One layer that adds the mean of all places before, or of all.
fn layer(tensors: &mut Tensors, tower: &str, kept: usize, gain: f32) {
    let at = |name: &str| format!("{tower}.encoder.layers.0.{name}");
    for norm in ["layer_norm1", "layer_norm2"] {
        tensors.insert(at(&format!("{norm}.weight")), vector(vec![1.0; WIDTH]));
        tensors.insert(at(&format!("{norm}.bias")), vector(vec![0.0; WIDTH]));
    }
    let copied = |gain: f32| matrix(WIDTH, WIDTH, &(0..kept).map(|i| (i, i, gain)).collect::<Vec<_>>());
    for (part, gain) in [("q", 0.0), ("k", 0.0), ("v", 1.0), ("out", gain)] {
        tensors.insert(at(&format!("self_attn.{part}_proj.weight")), copied(gain));
        tensors.insert(at(&format!("self_attn.{part}_proj.bias")), vector(vec![0.0; WIDTH]));
    }
    for (name, rows, columns) in [("mlp.fc1", 4 * WIDTH, WIDTH), ("mlp.fc2", WIDTH, 4 * WIDTH)] {
        tensors.insert(at(&format!("{name}.weight")), matrix(rows, columns, &[]));
        tensors.insert(at(&format!("{name}.bias")), vector(vec![0.0; rows]));
    }
}

fn norm(tensors: &mut Tensors, name: &str) {
    tensors.insert(format!("{name}.weight"), vector(vec![1.0; WIDTH]));
    tensors.insert(format!("{name}.bias"), vector(vec![0.0; WIDTH]));
}

/// From the numbers of three colours to how much more of each there is than of the others.
fn differences(places: &mut Vec<(usize, usize, f32)>) {
    for row in 0..3 {
        places.extend((0..3).map(|column| (row, column, if row == column { 1.0 } else { -0.5 })));
    }
}

fn clip() -> Tensors {
    let mut tensors = Tensors::new();
    let mut patch = vec![0.0; WIDTH * 3 * PATCH * PATCH];
    for channel in 0..3 {
        let start = (channel * 3 + channel) * PATCH * PATCH;
        patch[start..start + PATCH * PATCH].fill(1.0 / (PATCH * PATCH) as f32);
    }
    let embeddings = "vision_model.embeddings";
    tensors.insert(format!("{embeddings}.patch_embedding.weight"), (vec![WIDTH, 3, PATCH, PATCH], patch));
    tensors.insert(format!("{embeddings}.class_embedding"), vector(vec![0.0; WIDTH]));
    tensors.insert(format!("{embeddings}.position_embedding.weight"), positions(PATCHES + 1));
    norm(&mut tensors, "vision_model.pre_layrnorm");
    layer(&mut tensors, "vision_model", 3, GAIN);
    norm(&mut tensors, "vision_model.post_layernorm");
    // White is no colour, and not dark: what it gives in the three colours, of which two norms took their mean, is taken
    // from the large number, which norms leave at the root of half the width.
    let large = (WIDTH as f32 / 2.0).sqrt();
    let white = 3.0 * (1.0 - 3.0 / WIDTH as f32).powi(2) * GAIN * large / LARGE * PATCHES as f32 / (PATCHES + 1) as f32;
    let mut places = vec![(3, 0, -0.5), (3, 1, -0.5), (3, 2, -0.5), (3, WIDTH - 2, 0.5 * white / large)];
    differences(&mut places);
    tensors.insert("visual_projection.weight".to_owned(), matrix(COMMON, WIDTH, &places));

    let words: Vec<_> = COLOURS.iter().enumerate().map(|(i, token)| (*token, i, 10.0)).collect();
    tensors.insert("text_model.embeddings.token_embedding.weight".to_owned(), matrix(49408, WIDTH, &words));
    tensors.insert("text_model.embeddings.position_embedding.weight".to_owned(), positions(77));
    layer(&mut tensors, "text_model", 4, GAIN);
    norm(&mut tensors, "text_model.final_layer_norm");
    let mut places = vec![(3, 3, 1.0)];
    differences(&mut places);
    tensors.insert("text_projection.weight".to_owned(), matrix(COMMON, WIDTH, &places));
    tensors.insert("logit_scale".to_owned(), (vec![], vec![2.0]));
    tensors
}

/// The same under the names of open_clip.
fn open_clip(tensors: &Tensors) -> Tensors {
    let transposed = |(shape, numbers): &(Vec<usize>, Vec<f32>)| {
        let (rows, columns) = (shape[0], shape[1]);
        let turned = (0..rows * columns).map(|i| numbers[i % rows * columns + i / rows]);
        (vec![columns, rows], turned.collect())
    };
    let mut renamed = Tensors::new();
    for (name, tensor) in tensors {
        match name.as_str() {
            "text_projection.weight" => drop(renamed.insert("text_projection".to_owned(), transposed(tensor))),
            "visual_projection.weight" => drop(renamed.insert("visual.proj".to_owned(), transposed(tensor))),
            _ => drop(renamed.insert(open_clip_name(name), tensor.clone())),
        }
    }
    // Queries, keys and values are one.
    for tower in ["", "visual."] {
        for kind in ["weight", "bias"] {
            let at = |part: &str| format!("{tower}transformer.resblocks.0.{part}{kind}");
            let parts = ["q", "k", "v"].map(|part| renamed.remove(&at(&format!("self_attn.{part}_proj."))).unwrap());
            let mut shape = parts[0].0.clone();
            shape[0] *= 3;
            renamed.insert(at("attn.in_proj_"), (shape, parts.map(|part| part.1).concat()));
        }
    }
    renamed
}

fn open_clip_name(name: &str) -> String {
    let names = [
        ("vision_model.encoder.layers.", "visual.transformer.resblocks."),
        ("text_model.encoder.layers.", "transformer.resblocks."),
        ("vision_model.embeddings.patch_embedding", "visual.conv1"),
        ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
        ("vision_model.embeddings.", "visual."),
        ("vision_model.pre_layrnorm", "visual.ln_pre"),
        ("vision_model.post_layernorm", "visual.ln_post"),
        ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
        ("text_model.embeddings.", ""),
        ("text_model.final_layer_norm", "ln_final"),
        ("layer_norm1", "ln_1"),
        ("layer_norm2", "ln_2"),
        ("self_attn.out_proj", "attn.out_proj"),
        ("mlp.fc1", "mlp.c_fc"),
        ("mlp.fc2", "mlp.c_proj"),
    ];
    names.iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}

/// A file of safetensors; no page of it is all zeros, as no trained model's is.
fn file(tensors: &Tensors) -> Vec<u8> {
    let (mut header, mut data, mut state) = (Map::new(), Vec::new(), 7_u32);
    for (name, (shape, numbers)) in tensors {
        let start = data.len();
        for number in numbers {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let noise = ((state >> 16) as f32 / 65_536.0 - 0.5) * 1e-6;
            data.extend((number + noise).to_le_bytes());
        }
        header.insert(name.clone(), json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]}));
    }
    let header = serde_json::to_vec(&header).unwrap();
    [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()
}

/// A lab that has the model in one of the two layouts.
fn lab(smoke: &str, tensors: &Tensors) -> Lab {
    let colours = json!({"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]});
    let side = PATCH * 4;
    let files = if smoke == "clip" {
        let config = json!({
            "projection_dim": COMMON,
            "text_config": {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": 1,
                "num_attention_heads": 1, "eos_token_id": 2},
            "vision_config": {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": 1,
                "num_attention_heads": 1, "image_size": side, "patch_size": PATCH},
        });
        let colours = json!({"image_mean": colours["mean"], "image_std": colours["std"]});
        vec![
            ("config.json", config.to_string().into_bytes()),
            ("preprocessor_config.json", colours.to_string().into_bytes()),
            ("model.safetensors", file(tensors)),
        ]
    } else {
        let config = json!({
            "model_cfg": {"embed_dim": COMMON, "quick_gelu": true,
                "vision_cfg": {"image_size": side, "layers": 1, "width": WIDTH, "head_width": WIDTH, "patch_size": PATCH},
                "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": WIDTH, "heads": 1, "layers": 1}},
            "preprocess_cfg": colours,
        });
        vec![
            ("open_clip_config.json", config.to_string().into_bytes()),
            ("open_clip_model.safetensors", file(&open_clip(tensors))),
        ]
    };
    let listed: Vec<String> = files.iter().map(|(path, _)| format!("{{ path = {path:?} }}")).collect();
    let lab = Lab::new(
        INVENTORY,
        &format!(
            "[[artifact]]\nname = \"towers\"\nstore = \"plain\"\nsource = \"local\"\nsmoke = {smoke:?}\nfile = [{}]\n",
            listed.join(", ")
        ),
    );
    for (path, bytes) in files {
        lab.write(&format!("home/plain/{path}"), bytes);
    }
    lab
}

/// Exit code, and the names and details of the checks that did not pass.
#[track_caller]
fn smoke(lab: &Lab, level: &str) -> (i32, BTreeMap<String, Value>) {
    let said = lab.run(&["smoke", "--json", "--level", level]);
    let json: Value = serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {said:?}"));
    let checks = json["artifacts"][0]["checks"].as_array().unwrap();
    assert!(checks.iter().any(|check| check["level"] == "component"), "{said:?}");
    let wrong = checks.iter().filter(|check| check["outcome"] != "passed");
    (said.code, wrong.map(|check| (check["name"].as_str().unwrap().to_owned(), check["details"].clone())).collect())
}

const RANKS: &str = "captions of drawn shapes";

#[test]
fn captions_find_what_is_drawn_in_both_layouts() {
    for kind in ["clip", "dfn5b-clip"] {
        let lab = lab(kind, &clip());
        // Encoders make nothing by themselves: at the level beyond there is nothing more to try.
        for level in ["component", "generate"] {
            assert_eq!(smoke(&lab, level), (0, BTreeMap::new()), "{kind} {level}");
        }
    }
}

/// CLIP's numbers of the words that larder asks for, in an order in which no pair of one word cuts another.
const WORDS: [(&str, u32); 9] = [
    ("a", 320),
    ("green", 1901),
    ("blue", 1746),
    ("black", 1449),
    ("square", 3999),
    ("circle", 7117),
    ("triangle", 14615),
    ("cross", 3417),
    ("red", 736),
];

/// `vocab.json` and `merges.txt` that know these words.
fn tokenizer(words: &[(&str, u32)]) -> [String; 2] {
    let (mut vocabulary, mut merges) = (Map::new(), "#version: 0.2\n".to_owned());
    for (word, number) in words {
        vocabulary.insert(format!("{word}</w>"), json!(number));
    }
    vocabulary.insert("<|startoftext|>".to_owned(), json!(49406));
    vocabulary.insert("<|endoftext|>".to_owned(), json!(49407));
    let mut others: Vec<String> =
        ('a'..='z').flat_map(|letter| [letter.to_string(), format!("{letter}</w>")]).collect();
    for (word, _) in words.iter().filter(|(word, _)| word.len() > 1) {
        for i in 1..word.len() {
            let end = if i + 1 == word.len() { "</w>" } else { "" };
            let pair = format!("{} {}{end}\n", &word[..i], &word[i..=i]);
            if !merges.contains(&format!("\n{pair}")) {
                merges.push_str(&pair);
            }
            others.push(format!("{}{end}", &word[..=i]));
        }
    }
    let mut free: Vec<u32> = (0..49406).filter(|number| !words.iter().any(|(_, taken)| taken == number)).collect();
    others.extend((0..49408).map(|number| format!("other{number}")));
    for token in others {
        if !vocabulary.contains_key(&token)
            && let Some(number) = free.pop()
        {
            vocabulary.insert(token, json!(number));
        }
    }
    [Value::Object(vocabulary).to_string(), merges]
}

#[test]
fn captions_are_read_by_the_models_own_tokenizer() {
    let exchanged = WORDS.map(|(word, number)| match word {
        "red" => (word, 1746),
        "blue" => (word, 736),
        _ => (word, number),
    });
    for (words, right) in [(WORDS, true), (exchanged, false)] {
        let lab = lab("clip", &clip());
        let [vocabulary, merges] = tokenizer(&words);
        lab.write("home/plain/vocab.json", vocabulary);
        lab.write("home/plain/merges.txt", merges);
        let manifest = fs_err::read_to_string(lab.path("manifests/lab.toml")).unwrap();
        let files = "file = [{ path = \"vocab.json\" }, { path = \"merges.txt\" }, ";
        lab.write("manifests/lab.toml", manifest.replace("file = [", files));
        let (code, wrong) = smoke(&lab, "component");
        assert_eq!(wrong.keys().map(String::as_str).collect::<Vec<_>>(), if right { vec![] } else { vec![RANKS] });
        assert_eq!(code, if right { 0 } else { 3 });
    }
}

#[test]
fn exchanged_rows_and_random_weights_are_told() {
    let mut exchanged = clip();
    let (_, rows) = exchanged.get_mut("visual_projection.weight").unwrap();
    let (red, blue) = (rows[..WIDTH].to_vec(), rows[2 * WIDTH..3 * WIDTH].to_vec());
    rows[..WIDTH].copy_from_slice(&blue);
    rows[2 * WIDTH..3 * WIDTH].copy_from_slice(&red);
    let (code, wrong) = smoke(&lab("clip", &exchanged), "component");
    assert_eq!((code, wrong.keys().map(String::as_str).collect::<Vec<_>>()), (3, vec![RANKS]));
    let details = wrong[RANKS].to_string();
    assert!(details.contains("the picture of a red square is called a blue circle"), "{details}");

    let mut random = clip();
    let mut state = 3_u32;
    for (_, numbers) in random.values_mut() {
        for number in numbers {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *number = (state >> 16) as f32 / 65_536.0 - 0.5;
        }
    }
    for kind in ["clip", "dfn5b-clip"] {
        let (code, wrong) = smoke(&lab(kind, &random), "component");
        assert_eq!((code, wrong.contains_key(RANKS)), (3, true), "{kind}: {wrong:?}");
    }
}

#[test]
fn a_tensor_that_is_gone_is_named_in_either_layout() {
    let mut short = clip();
    short.remove("text_model.final_layer_norm.bias").unwrap();
    for kind in ["clip", "dfn5b-clip"] {
        let (code, wrong) = smoke(&lab(kind, &short), "component");
        assert_eq!(code, 3);
        let details = wrong["weights"].to_string();
        assert!(details.contains("text_model.final_layer_norm.bias is missing"), "{kind}: {details}");
    }
}
