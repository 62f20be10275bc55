// Predicts with graph models of TensorFlow.js: argv[2] is a JSON file of cases, the answer goes to argv[3].
const fs = require("fs");
const path = require("path");
const tf = require("@tensorflow/tfjs");

async function load(folder) {
  const model = JSON.parse(fs.readFileSync(path.join(folder, "model.json")));
  const files = model.weightsManifest.flatMap((group) => group.paths);
  const data = Buffer.concat(files.map((file) => fs.readFileSync(path.join(folder, file))));
  return tf.loadGraphModel(
    tf.io.fromMemory({
      modelTopology: model.modelTopology,
      signature: model.signature,
      weightSpecs: model.weightsManifest.flatMap((group) => group.weights),
      weightData: data.buffer.slice(data.byteOffset, data.byteOffset + data.byteLength),
    })
  );
}

async function main() {
  await tf.setBackend("cpu");
  const answer = {};
  for (const [key, one] of Object.entries(JSON.parse(fs.readFileSync(process.argv[2])))) {
    const model = await load(one.folder);
    const feed = {};
    for (const [name, { dtype, shape, values }] of Object.entries(one.inputs)) {
      feed[model.signature.inputs[name].name] = tf.tensor(values, shape, dtype);
    }
    const outputs = Object.entries(model.signature.outputs);
    const tensors = await model.executeAsync(feed, outputs.map(([, info]) => info.name));
    const list = Array.isArray(tensors) ? tensors : [tensors];
    answer[key] = Object.fromEntries(outputs.map(([name], i) => [name, Array.from(list[i].dataSync())]));
  }
  fs.writeFileSync(process.argv[3], JSON.stringify(answer));
}

main();
