"""A Trainer whose checkpoints have a model card, and whose pushes to the Hub are one commit each, with all that belongs to it."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils.hub import PushInProgress, hf_api

from hf_glmd.errors import UsageError
from hf_glmd.hub.folder import CARD, checkpoint_files, content_of, files_to_push, find_files
from hf_glmd.hub.push import HubTarget
from hf_glmd.reports.card import SourceCard
from hf_glmd.reports.training_card import Sizes, training_card
from hf_glmd.training.token_mean import TokenMeanTrainer
from hf_glmd.vocab.vocab_map import VocabMap

logger = logging.getLogger(__name__)


class PublishingTrainer(TokenMeanTrainer):
    """What `transformers.Trainer` does for the Hub, with whole commits, retries and a card that has figures.

    Weights, tokenizer, vocabulary map, card and plots are one commit, with a checkpoint to go on from if wanted.
    A push that fails while training goes on is logged; one that is waited for raises `UsageError`. Either way the local folder
    is complete, and the message has the command that pushes it later.
    """

    began: float | None = None
    """When training began, by the monotonic clock. None: not yet, or not here, for it went on from a checkpoint."""

    def worse_than_at_start(self) -> str | None:
        """What to say of a training that made the model worse; None: it did not."""
        return None

    student_sizes: Sizes
    teacher_sizes: Sequence[Sizes] = ()
    pipeline_tag: str
    vocab_map: VocabMap | None = None

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        self.began = None if resume_from_checkpoint else time.monotonic()
        return super().train(resume_from_checkpoint, *args, **kwargs)

    @cached_property
    def source_card(self) -> SourceCard:
        """What the teacher's card says; of several teachers no one speaks for all."""
        names = [one.name for one in self.teacher_sizes]
        return SourceCard.read(names[0]) if len(names) == 1 else SourceCard()

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            self._write_card(output_dir or self.args.output_dir)

    def _write_card(self, folder: str | os.PathLike[str], **said: Any) -> None:
        (Path(folder) / CARD).write_text(training_card(self, load_from=str(folder), **said), encoding="utf-8")

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Writes README.md into `args.output_dir`. What is not given comes from the training and from the teacher's card.

        Args:
            language, license: as the Hub spells them.
            tags: besides those of the model.
            model_name: the title.
            finetuned_from: Hub name of the teacher.
            tasks: the Hub's pipeline tag.
            dataset_tags: Hub names of what was trained on.
            dataset, dataset_args: the same in words.
        """
        if self.is_world_process_zero():
            said = dict(locals())
            del said["self"]
            self._write_card(self.args.output_dir, **said)

    # To the Hub

    def _target(self, token: str | None, revision: str | None = None) -> HubTarget:
        folder = self.args.output_dir
        repo = self.hub_model_id or self.args.hub_model_id or Path(folder).absolute().name
        revision = revision or self.args.hub_revision
        later = shlex.join(["hf-glmd", "push", folder, repo, *(["--revision", revision] if revision else [])])
        return HubTarget(repo, revision, token or self.args.hub_token, self.args.hub_overwrite, later)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Makes the repository, if it is not there.

        Raises: UsageError, the Hub cannot be reached, does not allow it, or holds something else: before training, not after.
        """
        if not self.is_world_process_zero():
            return
        target = self._target(token)
        target.later = ""  # nothing is there to be pushed yet
        target.check()
        target.create(private if private is not None else self.args.hub_private_repo)
        self.hub_model_id = target.repo
        self.push_in_progress = None

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Saves the model to `args.output_dir` and pushes what belongs to it, in one commit; checkpoints stay here.

        Args:
            commit_message: the commit's title.
            blocking: wait for it. False: it goes on in the background, and a failure is logged.
            token: unset: `args.hub_token`, HF_TOKEN, or the one of `hf auth login`.
            revision: branch. Unset: `args.hub_revision`, or main.
            private: of a new repository. Unset: `args.hub_private_repo`.
            **kwargs: for `create_model_card`.
        Returns: `huggingface_hub.CommitInfo`, or a future of one; None on all processes but the first.
        Raises: UsageError, it failed.
        """
        if (worse := self.worse_than_at_start()) and not self.args.accept_worse:
            raise UsageError(f"nothing is pushed, for {worse} To push it all the same, pass accept_worse=True.")
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token, private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**{"model_name": self.hub_model_id.split("/")[-1], **kwargs})
        self._finish_current_push()
        target, folder = self._target(token, revision), Path(self.args.output_dir)

        def push() -> Any:
            target.check()
            return target.push(_contents(files_to_push(folder), target.repo), commit_message or "Upload model", private)

        return push() if blocking else hf_api().run_as_future(_logged(push))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        strategy, args = self.args.hub_strategy, self.args
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        if (worse := self.worse_than_at_start()) and not args.accept_worse:
            logger.warning("The checkpoint of step %d is not pushed, for %s", self.state.global_step, worse)
            return
        if not args.hub_always_push and self.push_in_progress is not None and not self.push_in_progress.is_done():
            return
        self.callback_handler.on_push_begin(args, self.state, self.control)
        by_step = args.save_strategy == SaveStrategy.STEPS
        when = f"step {self.state.global_step}" if by_step else f"epoch {int(self.state.epoch or 0)}"
        checkpoint, output = Path(checkpoint_folder), Path(args.output_dir)
        # What lies beside the checkpoints, the vocabulary's report for one, goes with the newest model.
        files = find_files(output) | find_files(checkpoint)
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            name = "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else checkpoint.name
            files |= {f"{name}/{path}": file for path, file in checkpoint_files(checkpoint).items()}
        # Rotation deletes checkpoints that are still on their way, and a card beside them is written anew: these stay.
        staged = Path(tempfile.mkdtemp(prefix="_push-", dir=output))
        target = self._target(None)

        def push() -> None:
            try:
                target.check()
                target.push(_contents(linked, target.repo), f"Training in progress, {when}", args.hub_private_repo)
            finally:
                shutil.rmtree(staged, ignore_errors=True)

        linked = {path: _staged(file, staged / path, checkpoint in file.parents) for path, file in files.items()}
        job = hf_api().run_as_future(_logged(push))
        if self.push_in_progress is None or self.push_in_progress.is_done():
            self.push_in_progress = PushInProgress([job])
        else:
            self.push_in_progress.jobs.append(job)


def _contents(files: Mapping[str, Path], repo: str) -> dict[str, Path | bytes]:
    return {path: content_of(path, file, repo) for path, file in files.items()}


def _staged(file: Path, place: Path, as_link: bool) -> Path:
    """A link, which takes neither time nor room, or a copy where there are none on the file system or the file may change."""
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        if as_link:
            os.link(file, place)
            return place
    except OSError:
        pass
    shutil.copyfile(file, place)
    return place


def _logged(push: Callable[[], Any]) -> Callable[[], Any]:
    """For the background, where nobody would see what is raised: training goes on, and the log says what failed."""

    def run() -> Any:
        try:
            return push()
        except UsageError as error:
            logger.warning("%s", error)
        except Exception:
            logger.exception("The push failed.")
        return None

    return run
