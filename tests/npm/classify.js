// Usage: node classify.js MODEL.eim PIXELS.json; prints what the vendor's own library makes of the pixels.
const fs = require("fs");
const { createRequire } = require("module");
const here = createRequire(process.cwd() + "/package.json");
const { LinuxImpulseRunner } = here("edge-impulse-linux/build/library/classifier/linux-impulse-runner");

(async () => {
  const runner = new LinuxImpulseRunner(process.argv[2]);
  const model = await runner.init();
  const answers = [];
  for (const pixels of JSON.parse(fs.readFileSync(process.argv[3]))) {
    answers.push((await runner.classify(pixels)).result.classification);
  }
  await runner.stop();
  console.log(JSON.stringify({ labels: model.modelParameters.labels, answers }));
  process.exit(0); // the library keeps the process alive
})().catch((e) => {
  console.error(e);
  process.exit(1);
});
