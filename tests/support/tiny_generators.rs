//! The tiny reference checkpoints of `generators/`, as files that a model repository would have: with the random
//! weights of the records, or with a few of them set so that every part does its work, as if it had been trained.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

/// A tensor before it is written.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Numbers {
    pub(crate) shape: Vec<usize>,
    pub(crate) numbers: Vec<f32>,
    pub(crate) dtype: &'static str,
}

/// The tensors of one file.
pub(crate) type Tensors = BTreeMap<String, Numbers>;

/// The files of a generator: weights by path, and everything else.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tiny {
    pub(crate) weights: BTreeMap<String, Tensors>,
    pub(crate) settings: BTreeMap<String, Vec<u8>>,
}

const TRANSFORMER: &str = "transformer/diffusion_pytorch_model.safetensors";
const VAE: &str = "vae/diffusion_pytorch_model.safetensors";

fn golden(path: &str) -> Vec<u8> {
    fs_err::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("generators/tests/golden").join(path)).unwrap()
}

fn json_of<T: serde::de::DeserializeOwned>(path: &str) -> T {
    serde_json::from_slice(&golden(path)).unwrap()
}

impl Tiny {
    /// Stable Diffusion 3.5 in folders, its weights random.
    pub(crate) fn random_pictures() -> Self {
        let index = json!({
            "_class_name": "StableDiffusion3Pipeline",
            "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
            "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "text_encoder_3": ["transformers", "T5EncoderModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
            "tokenizer_3": ["transformers", "T5TokenizerFast"],
            "transformer": ["diffusers", "SD3Transformer2DModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        });
        Self::laid("sd3", &[("tokenizer", "clip_l"), ("tokenizer_2", "clip_g"), ("tokenizer_3", "t5")], &index)
    }

    /// Stable Audio Open in folders, its weights random.
    pub(crate) fn random_sounds() -> Self {
        let index = json!({
            "_class_name": "StableAudioPipeline",
            "scheduler": ["diffusers", "CosineDPMSolverMultistepScheduler"],
            "text_encoder": ["transformers", "T5EncoderModel"],
            "projection_model": ["stable_audio", "StableAudioProjectionModel"],
            "tokenizer": ["transformers", "T5TokenizerFast"],
            "transformer": ["diffusers", "StableAudioDiTModel"],
            "vae": ["diffusers", "AutoencoderOobleck"],
        });
        let mut tiny = Self::laid("audio", &[("tokenizer", "t5")], &index);
        tiny.settings.insert("tokenizer/tokenizer_config.json".to_owned(), br#"{"model_max_length": 19}"#.to_vec());
        let mut vae: Value = serde_json::from_slice(&tiny.settings["vae/config.json"]).unwrap();
        vae["sampling_rate"] = json!(8000);
        tiny.settings.insert("vae/config.json".to_owned(), vae.to_string().into_bytes());
        tiny
    }

    /// BigVGAN as if trained: of a spectrogram it makes two tones, an octave apart, each as loud as its bands.
    pub(crate) fn vocoder() -> Self {
        let mut config: Value = json_of("bigvgan/config.json");
        // Two tones of one period and of two in a frame: those of the smoke test's chords.
        for (key, value) in [("sampling_rate", 3400), ("n_fft", 60), ("hop_size", 12), ("win_size", 60), ("fmax", 900)]
        {
            config[key] = json!(value);
        }
        let settings = BTreeMap::from([("config.json".to_owned(), config.to_string().into_bytes())]);
        let mut tensors = filled_list("bigvgan/tensors.json");
        teach_vocoder(&mut tensors);
        Self { weights: BTreeMap::from([("bigvgan_generator.safetensors".to_owned(), tensors)]), settings }
    }

    /// A BERT for sentences as if trained: words of one subject have nearly one direction.
    pub(crate) fn sentences() -> Self {
        let mut tensors = filled_list("bert/tensors.json");
        teach_sentences(&mut tensors);
        let settings = BTreeMap::from([
            ("config.json".to_owned(), golden("bert/config.json")),
            ("tokenizer.json".to_owned(), word_pieces().to_string().into_bytes()),
        ]);
        Self { weights: BTreeMap::from([("model.safetensors".to_owned(), tensors)]), settings }
    }

    fn laid(family: &str, tokenizers: &[(&str, &str)], index: &Value) -> Self {
        let config: Value = json_of("pipeline_texts/config.json");
        let mut tiny = Self { weights: BTreeMap::new(), settings: BTreeMap::new() };
        tiny.settings.insert("model_index.json".to_owned(), index.to_string().into_bytes());
        for (part, settings) in config[family].as_object().unwrap() {
            let is_scheduler = part == "scheduler";
            let name = if is_scheduler { "scheduler_config.json" } else { "config.json" };
            tiny.settings.insert(format!("{part}/{name}"), settings.to_string().into_bytes());
            if !is_scheduler {
                let name = if part.starts_with("text_encoder") { "model" } else { "diffusion_pytorch_model" };
                let tensors = filled_list(&format!("pipeline_texts/{family}.{part}.json"));
                tiny.weights.insert(format!("{part}/{name}.safetensors"), tensors);
            }
        }
        for (part, from) in tokenizers {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("generators/tests/golden/tokenizers").join(from);
            for entry in fs_err::read_dir(folder).unwrap() {
                let entry = entry.unwrap();
                let name = format!("{part}/{}", entry.file_name().to_str().unwrap());
                tiny.settings.insert(name, fs_err::read(entry.path()).unwrap());
            }
        }
        tiny
    }

    /// Stable Diffusion 3.5 as if trained: the autoencoder gives pictures back, the denoiser sees noise.
    pub(crate) fn pictures() -> Self {
        let mut tiny = Self::random_pictures();
        let transformer = tiny.weights.get_mut(TRANSFORMER).unwrap();
        hush(
            transformer,
            &["to_out.0.", "to_add_out.", "ff.net.2.", "ff_context.net.2.", "norm_out.", "pos_embed.pos_embed"],
            0.05,
        );
        set(transformer, "pos_embed.proj", |at| f32::from(at[0] == at[1] * 4 + at[2] * 2 + at[3]));
        // A patch goes in channel by channel, and comes out pixel by pixel.
        set(transformer, "proj_out", |at| f32::from(at[1] == at[0] % 4 * 4 + at[0] / 4));
        teach_pictures(tiny.weights.get_mut(VAE).unwrap());
        tiny
    }

    /// Stable Audio Open as if trained: the autoencoder gives low tones back, the denoiser sees noise.
    pub(crate) fn sounds() -> Self {
        let mut tiny = Self::random_sounds();
        let transformer = tiny.weights.get_mut(TRANSFORMER).unwrap();
        hush(transformer, &["ff.net.2.", "preprocess_conv.", "postprocess_conv."], 0.05);
        // The time travels by attention alone: what it says must be heard.
        hush(transformer, &["to_out.0."], 0.2);
        set(transformer, "proj_in", |at| f32::from(at[0] == at[1]));
        set(transformer, "proj_out", |at| f32::from(at[0] == at[1]));
        teach_sounds(tiny.weights.get_mut(VAE).unwrap());
        tiny
    }

    /// The tensors of some parts in one file, under the names and prefixes that it has for them; they leave the folders.
    pub(crate) fn single_file(&mut self, family: &str, parts: &[(&str, &str)]) -> Tensors {
        let mut single = Tensors::new();
        for (part, prefix) in parts {
            let tensors = self.weights.remove(&format!("{part}/diffusion_pytorch_model.safetensors")).unwrap();
            let recipe: BTreeMap<String, Vec<(String, usize, usize)>> =
                json_of(&format!("pipeline_texts/{family}.{part}.single_file.json"));
            for (name, pieces) in recipe {
                let mut whole = joined(&tensors, &pieces);
                // What these programs shape otherwise.
                if name.ends_with(".alpha") || name.ends_with(".beta") {
                    whole.shape.retain(|&side| side != 1);
                } else if name.contains("attn_1") && whole.shape.len() == 2 {
                    whole.shape.extend([1, 1]);
                } else if name == "timestep_features.weight" {
                    whole.shape.push(1);
                }
                single.insert(format!("{prefix}{name}"), whole);
            }
        }
        single
    }

    /// Every file, by path.
    pub(crate) fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let weights = self.weights.iter().map(|(path, tensors)| (path.clone(), safetensors(tensors)));
        weights.chain(self.settings.clone()).collect()
    }
}

fn joined(tensors: &Tensors, pieces: &[(String, usize, usize)]) -> Numbers {
    let (mut shape, mut numbers, mut rows) = (Vec::new(), Vec::new(), 0);
    for (name, index, of) in pieces {
        let whole = &tensors[name];
        let step = whole.numbers.len() / of;
        numbers.extend_from_slice(&whole.numbers[index * step..(index + 1) * step]);
        rows += whole.shape[0] / of;
        shape.clone_from(&whole.shape);
    }
    shape[0] = rows;
    Numbers { shape, numbers, dtype: "F32" }
}

/// Makes the tensors whose names contain any of these words a little of what they were.
fn hush(tensors: &mut Tensors, words: &[&str], factor: f32) {
    for (_, tensor) in tensors.iter_mut().filter(|(name, _)| words.iter().any(|word| name.contains(word))) {
        tensor.numbers.iter_mut().for_each(|number| *number *= factor);
    }
}

/// Sets every number of a layer's weight by its indices, and its bias to zero.
fn set(tensors: &mut Tensors, layer: &str, number: impl Fn(&[usize]) -> f32) {
    let weight = tensors.get_mut(&format!("{layer}.weight")).unwrap();
    let indices = indices(&weight.shape);
    weight.numbers = indices.iter().map(|at| number(at)).collect();
    if let Some(bias) = tensors.get_mut(&format!("{layer}.bias")) {
        bias.numbers.fill(0.0);
    }
}

/// The same where length and direction of each row are kept apart; a row of zeros keeps its direction.
fn set_normed(tensors: &mut Tensors, layer: &str, number: impl Fn(&[usize]) -> f32) {
    let direction = tensors.get_mut(&format!("{layer}.weight_v")).unwrap();
    let wanted: Vec<f32> = indices(&direction.shape).iter().map(|at| number(at)).collect();
    let length = direction.numbers.len() / direction.shape[0];
    let mut lengths = Vec::new();
    for (row, wanted) in direction.numbers.chunks_mut(length).zip(wanted.chunks(length)) {
        let norm = wanted.iter().map(|number| number * number).sum::<f32>().sqrt();
        if norm > 0.0 {
            row.copy_from_slice(wanted);
        }
        lengths.push(norm);
    }
    tensors.get_mut(&format!("{layer}.weight_g")).unwrap().numbers = lengths;
    if let Some(bias) = tensors.get_mut(&format!("{layer}.bias")) {
        bias.numbers.fill(0.0);
    }
}

fn indices(shape: &[usize]) -> Vec<Vec<usize>> {
    let of = |mut flat: usize| {
        let mut at = vec![0; shape.len()];
        for (place, side) in at.iter_mut().zip(shape).rev() {
            *place = flat % side;
            flat /= side;
        }
        at
    };
    (0..shape.iter().product()).map(of).collect()
}

/// Every colour travels twice, once with its sign turned: then the activation can be undone, silu(x) - silu(-x) = x.
fn teach_pictures(vae: &mut Tensors) {
    hush(vae, &["conv2.", "to_out.0."], 0.02);
    for norm in ["encoder.conv_norm_out", "decoder.conv_norm_out"] {
        vae.get_mut(&format!("{norm}.weight")).unwrap().numbers.fill(1.0);
        vae.get_mut(&format!("{norm}.bias")).unwrap().numbers.fill(0.0);
    }
    let sign = |is: bool, is_not: bool| f32::from(is) - f32::from(is_not);
    let centre = |at: &[usize]| f32::from(at[2] == 1 && at[3] == 1);
    set(vae, "encoder.conv_in", |at| centre(at) * sign(at[0] == at[1], at[0] == at[1] + 3));
    set(vae, "encoder.down_blocks.0.downsamplers.0.conv", |at| {
        f32::from(at[0] == at[1] && at[2] < 2 && at[3] < 2) / 4.0
    });
    // The two groups of the last norm: the colours, and the same turned.
    set(vae, "encoder.down_blocks.1.resnets.0.conv_shortcut", |at| {
        f32::from(if at[0] < 5 { at[0] == at[1] && at[0] < 3 } else { at[0] < 8 && at[0] - 2 == at[1] })
    });
    set(vae, "encoder.conv_out", |at| centre(at) * f32::from(at[0] < 3) * sign(at[0] == at[1], at[0] + 5 == at[1]));
    set(vae, "decoder.conv_in", |at| centre(at) * f32::from(at[1] < 3) * sign(at[0] == at[1], at[0] == at[1] + 5));
    set(vae, "decoder.up_blocks.0.upsamplers.0.conv", |at| centre(at) * f32::from(at[0] == at[1]));
    set(vae, "decoder.up_blocks.1.resnets.0.conv_shortcut", |at| {
        f32::from(if at[0] < 3 { at[0] == at[1] } else { at[0] + 2 == at[1] })
    });
    // The norms have taken away how bright the picture is; this is how bright the drawing of the smoke test is.
    set(vae, "decoder.conv_out", |at| 0.63 * centre(at) * sign(at[0] == at[1], at[0] + 3 == at[1]));
}

/// Both channels travel twice, as above: snake(x) - snake(-x) = 2 x. Up again by straight lines between the samples.
fn teach_sounds(vae: &mut Tensors) {
    for layer in ["block.0.res_unit", "block.1.res_unit"] {
        for (name, tensor) in vae.iter_mut().filter(|(name, _)| name.contains(layer) && name.contains(".conv2.")) {
            if name.ends_with(".weight_g") || name.ends_with(".bias") {
                tensor.numbers.iter_mut().for_each(|number| *number *= 0.02);
            }
        }
    }
    for (_, tensor) in vae.iter_mut().filter(|(name, _)| name.contains("snake1.") && !name.contains("res_unit")) {
        tensor.numbers.fill(0.0);
    }
    // Channels 0 and 1 as they are, 2 and 3 turned.
    let pair = |from: usize, to: usize| match (from < 4 && to < 4, from % 2 == to % 2, from / 2 == to / 2) {
        (true, true, same) => {
            if same {
                1.0
            } else {
                -1.0
            }
        }
        _ => 0.0,
    };
    let tap = |at: &[usize], middle: usize| f32::from(at[2] == middle);
    set_normed(vae, "encoder.conv1", |at| tap(at, 3) * pair(at[1], at[0]));
    set_normed(vae, "encoder.block.0.conv1", |at| pair(at[1], at[0]) * f32::from((1..3).contains(&at[2])) / 4.0);
    set_normed(vae, "encoder.block.1.conv1", |at| pair(at[1], at[0]) * f32::from((2..6).contains(&at[2])) / 8.0);
    set_normed(vae, "encoder.conv2", |at| 0.2 * tap(at, 1) * f32::from(at[0] < 2) * pair(at[1], at[0]));
    set_normed(vae, "decoder.conv1", |at| 2.5 * tap(at, 3) * f32::from(at[1] < 2) * pair(at[1], at[0]));
    let slope = |at: &[usize], half: f32| (1.0 - (at[2] as f32 - (half - 0.5)).abs() / half) / 2.0;
    set_normed(vae, "decoder.block.0.conv_t1", |at| pair(at[0], at[1]) * slope(at, 4.0));
    set_normed(vae, "decoder.block.1.conv_t1", |at| pair(at[0], at[1]) * slope(at, 2.0));
    set_normed(vae, "decoder.conv2", |at| 0.5 * tap(at, 3) * pair(at[1], at[0]));
}

/// The loudness of the two tones comes from two bands; the stages draw a quarter and then a twelfth of a period each.
fn teach_vocoder(tensors: &mut Tensors) {
    hush(tensors, &["convs2."], 0.1);
    // The mean of seven frames: of the lowest band for the lower tone, of the fourth for the higher.
    let band = |at: &[usize]| if at[1] == 0 { 0.035 } else { -0.037 } / 7.0;
    set(tensors, "conv_pre", |at| match (at[0], at[1]) {
        (0, 0 | 3) => band(at),
        (1, 0 | 3) => -band(at),
        _ => 0.0,
    });
    tensors.get_mut("conv_pre.bias").unwrap().numbers[..2].copy_from_slice(&[0.201, 0.199]);
    // Sine and cosine of the lower tone at quarters of its period, cosine of the higher one at its halves.
    set(tensors, "ups.0.0", |at| match (at[0], at[1], at[2]) {
        (0, 0, 2..6) => [0.0, 1.0, 0.0, -1.0][at[2] - 2],
        (0, 1, 2..6) => [1.0, 0.0, -1.0, 0.0][at[2] - 2],
        (1, 2, 2..6) => [1.0, -1.0, 1.0, -1.0][at[2] - 2],
        _ => 0.0,
    });
    // Between two of them by what the sine of a sum is; twice, once with its sign turned, as above.
    set(tensors, "ups.1.0", |at| match (at[0], at[1], at[2]) {
        (from @ 0..3, to @ 0..2, 2..5) => {
            let angle = std::f32::consts::PI * (at[2] - 2) as f32 / 6.0;
            let part = [angle.cos(), angle.sin(), (2.0 * angle).sin()][from];
            if to == 0 { part } else { -part }
        }
        _ => 0.0,
    });
    for parameter in ["alpha", "beta"] {
        tensors.get_mut(&format!("activation_post.act.{parameter}")).unwrap().numbers.fill(0.0);
    }
    set(tensors, "conv_post", |at| [0.5, -0.5, 0.0][at[1]] * f32::from(at[2] == 3));
}

/// The words of the smoke test's sentences: of the weather, of a journey, and of neither.
const SUBJECTS: [&[&str]; 3] = [
    &["weather", "is", "lovely", "today", "it", "so", "sunny", "outside"],
    &["he", "drove", "to", "stadium"],
    &["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "'", "s", ".", "!"],
];

/// Every subject has a third of the numbers of a state, whatever the layers add.
fn teach_sentences(tensors: &mut Tensors) {
    for (name, tensor) in tensors.iter_mut().filter(|(name, _)| name.contains("LayerNorm.")) {
        tensor.numbers.fill(f32::from(name.ends_with(".weight")));
    }
    hush(tensors, &["dense.", "position_embeddings", "token_type_embeddings"], 0.3);
    let words = tensors.get_mut("embeddings.word_embeddings.weight").unwrap();
    let (width, mut token) = (words.shape[1], 0);
    for (subject, known) in SUBJECTS.iter().enumerate() {
        for _ in *known {
            for (i, number) in words.numbers[token * width..(token + 1) * width].iter_mut().enumerate() {
                *number = 0.3 * *number + f32::from(i / (width / 3) == subject);
            }
            token += 1;
        }
    }
}

/// The tokenizer of these words.
fn word_pieces() -> Value {
    let vocabulary: serde_json::Map<String, Value> =
        SUBJECTS.concat().iter().enumerate().map(|(i, word)| ((*word).to_owned(), json!(i))).collect();
    let [start, end] =
        ["[CLS]", "[SEP]"].map(|token| json!({"id": token, "ids": [vocabulary[token]], "tokens": [token]}));
    let framed = json!([
        {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
    ]);
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null,
            "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing", "single": framed, "pair": framed,
            "special_tokens": {"[CLS]": start, "[SEP]": end}},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocabulary},
    })
}

fn filled_list(list: &str) -> Tensors {
    let shapes: BTreeMap<String, Vec<usize>> = json_of(list);
    let filled = |(name, shape): (String, Vec<usize>)| {
        let numbers = filled(&name, &shape);
        (name, Numbers { shape, numbers, dtype: "F32" })
    };
    shapes.into_iter().map(filled).collect()
}

/// The numbers of a reference tensor, by the rule of `generators/tests/support`.
pub(crate) fn filled(name: &str, shape: &[usize]) -> Vec<f32> {
    let seed = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let fan: usize = shape.iter().skip(1).product();
    let (offset, scale) = match shape.len() {
        0 | 1 if name.ends_with("weight") && name.contains("norm") => (1.0, 0.2),
        0 | 1 => (0.0, 0.2),
        _ => (0.0, (3.0 / fan as f64).sqrt() as f32),
    };
    (1..=shape.iter().product::<usize>() as u64).map(|i| offset + scale * uniform(seed, i)).collect()
}

fn uniform(seed: u64, i: u64) -> f32 {
    let mut z = seed.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    (z >> 40) as f32 / 8_388_608.0 - 1.0
}

/// A safetensors file.
pub(crate) fn safetensors(tensors: &Tensors) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, tensor) in tensors {
        let start = data.len();
        match tensor.dtype {
            "F32" => data.extend(tensor.numbers.iter().flat_map(|number| number.to_le_bytes())),
            "F8_E4M3" => data.extend(tensor.numbers.iter().map(|number| f8(*number))),
            other => panic!("{other}"),
        }
        let entry = json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, data.len()]});
        header.insert(name.clone(), entry);
    }
    let mut header = serde_json::to_vec(&header).unwrap();
    // Numbers of four bytes stand at multiples of four.
    header.resize(header.len().next_multiple_of(8), b' ');
    [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()
}

/// The nearest number that eight bits can hold: four for the exponent, three for what follows it.
fn f8(number: f32) -> u8 {
    let value = |code: u8| {
        let (exponent, rest) = (i32::from(code >> 3), f32::from(code & 7) / 8.0);
        if exponent == 0 { rest * 2_f32.powi(-6) } else { (1.0 + rest) * 2_f32.powi(exponent - 7) }
    };
    // The last code is no number.
    let nearest = (0..0x7f_u8).min_by(|a, b| {
        let far = |code: u8| (value(code) - number.abs()).abs();
        far(*a).total_cmp(&far(*b))
    });
    nearest.unwrap() | if number < 0.0 { 0x80 } else { 0 }
}
