//! `larder smoke` with CLIP, as transformers and as open_clip store it: captions must find what is drawn.
#![cfg(feature = "smoke")]
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

#[path = "support/made_towers.rs"]
mod made_towers;
#[expect(dead_code, reason = "each test uses a part of what the program says")]
#[path = "support/program.rs"]
mod program;

use made_towers::{Tensors, WIDTH, clip, open_clip, settings};
use program::{INVENTORY, Lab};

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
    let mut files = settings(smoke);
    files.push(if smoke == "clip" {
        ("model.safetensors", file(tensors))
    } else {
        ("open_clip_model.safetensors", file(&open_clip(tensors)))
    });
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
