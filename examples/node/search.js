// Search a running server from Node: node search.js "How do I learn Node?" [HOST:PORT]
//
// There are no stubs to generate: the contract is read when the program starts. In this folder, first:
//
//   npm install
//
// COGNATE_PROTO names the folder of the contract where it is not ../../proto.
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const folder = process.env.COGNATE_PROTO ?? fileURLToPath(new URL("../../proto", import.meta.url));
const [query, target = "localhost:50051"] = process.argv.slice(2);
if (!query) {
  console.error("usage: node search.js QUERY [HOST:PORT]");
  process.exit(1);
}

const contract = protoLoader.loadSync("cognate/v1/search.proto", {
  includeDirs: [folder],
  keepCase: true,
  defaults: true,
});
const { cognate } = grpc.loadPackageDefinition(contract);

// Tried again where the server is restarting or behind a proxy that is.
const retries = {
  methodConfig: [
    {
      name: [{ service: "cognate.v1.SearchService" }],
      retryPolicy: {
        maxAttempts: 5,
        initialBackoff: "0.1s",
        maxBackoff: "1s",
        backoffMultiplier: 2,
        retryableStatusCodes: ["UNAVAILABLE"],
      },
    },
  ],
};
const client = new cognate.v1.SearchService(target, grpc.credentials.createInsecure(), {
  "grpc.service_config": JSON.stringify(retries),
});

// Without a deadline a call may wait for ever.
const deadline = Date.now() + 10_000;
client.Search({ queries: [{ text: query }], top_k: 5 }, { deadline }, (error, answer) => {
  if (error) {
    console.error(`error: ${error.message}`);
    process.exitCode = 1;
  } else {
    for (const hit of answer.results[0].hits) {
      console.log(`${hit.score.toFixed(3)}  ${hit.text}`);
    }
  }
  client.close();
});
