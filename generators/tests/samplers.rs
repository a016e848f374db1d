//! Schedules and steps against diffusers.

#![expect(clippy::unwrap_used, reason = "tests fail loudly")]

mod support;

use std::collections::BTreeMap;

use larder_generators::samplers::flow_match_euler::{Config, FlowMatchEuler, ScheduleError};
use serde::Deserialize;
use support::{Golden, assert_parity};

#[derive(Deserialize)]
struct Case {
    config: Config,
    steps: usize,
    mu: Option<f64>,
}

#[test]
fn flow_match_euler_follows_diffusers() {
    let golden = Golden::open("flow_match_euler");
    for (name, case) in golden.config::<BTreeMap<String, Case>>() {
        let schedule = FlowMatchEuler::new(&case.config, case.steps, case.mu).unwrap();
        let expected = golden.tensor(&format!("{name}.sigmas")).to_vec1::<f32>().unwrap();
        assert_eq!(schedule.sigmas().len(), expected.len(), "{name}");
        for (found, expected) in schedule.sigmas().iter().zip(&expected) {
            assert!((found - expected).abs() <= 2e-7, "{name}: {found} instead of {expected}");
        }
        let mut sample = golden.tensor(&format!("{name}.start"));
        for i in 0..schedule.steps() {
            let velocity = (sample.cos().unwrap() * 1.5).unwrap();
            sample = schedule.step(i, &velocity, &sample).unwrap();
        }
        assert_parity(&name, &sample, &golden.tensor(&format!("out.{name}")));
        let first = golden.tensor(&format!("{name}.timesteps")).to_vec1::<f32>().unwrap()[0];
        assert!((schedule.timestep(0) - first).abs() <= 1e-3, "{name}");
    }
}

#[test]
fn schedules_that_cannot_be_made_are_refused() {
    let config = |text: &str| serde_json::from_str::<Config>(text).unwrap();
    let refused = |text: &str, steps| FlowMatchEuler::new(&config(text), steps, None).unwrap_err();
    assert_eq!(refused("{}", 0), ScheduleError::NoSteps);
    assert_eq!(refused(r#"{"use_dynamic_shifting":true}"#, 4), ScheduleError::NoShift);
    let option = "use_karras_sigmas";
    assert_eq!(refused(r#"{"use_karras_sigmas":true}"#, 4), ScheduleError::Unsupported { option });
}
