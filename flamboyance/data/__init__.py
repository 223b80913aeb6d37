"""Training data: stored records -> batches, in an order that a run resumes exactly.

shards.py      patterns -> shards; a shard (tar.py, tables.py, parquet.py, folder.py) -> records, however damaged it is
streaming.py   the records of one source, shuffled; the state that restores their order
documents.py   `Record`, `Document`, and `Source`: where records come from and how they are used
formats/       one `Source` per format: `Record` -> `Document`, interleaved text and encoded images
examples.py    `Document` -> `TrainingExample`: token ids, labels, decoded images
batch.py       `TrainingExample`s -> `Batch`
loader.py      a batch of every source per step, from worker processes (worker.py)
presets.py     the published settings of OpenFlamingo's and Flamingo's sources
convert/       MMC4's zips and users' folders -> tars
"""
