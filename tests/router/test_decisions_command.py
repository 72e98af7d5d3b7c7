"""`opsmesh decisions show` and `answer`, against a running router."""

import json
from pathlib import Path

from tests.cli.mesh import run
from tests.mesh.world import World
from tests.router import minds
from tests.router.minds import says
from tests.router.village import living, made
from tests.stores import Database


async def test_show_tells_of_the_model_and_answer_answers(world: World, postgres: Database, tmp_path: Path) -> None:
    """Outcome, confidence, model, tokens, cost, prompt hash, what was absent, the question; then the answer."""
    async with postgres.fresh() as database, living(world, database) as scene:
        endpoints = {
            "services": {"router": f"127.0.0.1:{scene.router.server.port}"},
            "tls": {
                "ca": str(world.pki / "ca.pem"),
                "operator": {"cert": str(world.pki / "operator.pem"), "key": str(world.pki / "operator.key")},
            },
        }
        (tmp_path / "endpoints.json").write_text(json.dumps(endpoints))
        scene.village.policies.open.clear()
        scene.village.models.will(says(minds.SEARCH), says(minds.ASK, 0.42))
        decision = await scene.village.decide(scene.router)
        asked = await scene.router.until(decision.decision_id, made)
        shown = await run("decisions", "show", decision.decision_id, "--state", str(tmp_path))
        scene.village.policies.open.set()
        assert shown.code == 0, shown.err
        prompt = asked.model_calls[0].prompt_hash[:12]
        for words in (
            "ASK_HUMAN", "0.42", "openai/tiny", "900 in, 50 out", "0.000440", prompt, "policies (no answer within 2 s)",
            "Is a migration planned?", "yes or no", "read opsmesh.tools.runbook.v1", f"answer {decision.decision_id}",
        ):  # fmt: skip
            assert words in shown.out
        wrong = await run("decisions", "answer", decision.decision_id, "perhaps", "--state", str(tmp_path))
        assert (wrong.code, "the question wants yes or no" in wrong.err) == (1, True)
        done = await run("decisions", "answer", decision.decision_id, "no", "--state", str(tmp_path), "--json")
        assert (done.answer["result"], done.answer["answer"]["yes"]) == ("RESULT_ANSWERED", False)
        late = await run("decisions", "answer", decision.decision_id, "yes", "--state", str(tmp_path))
    assert (late.code, "human/operator answered it" in late.err) == (1, True)
