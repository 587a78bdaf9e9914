// `node events.js PORT`: what asks for `/` is told an event at once, and another each time that somebody asks for `/next`, three in all. What
// Node's own HTTP server makes of it is passed on.
const http = require("node:http");

const told = new Map();

const tell = (response) => {
  const number = told.get(response);
  response.write(`data: ${number}\n\n`);
  told.set(response, number + 1);
  if (number === 2) {
    told.delete(response);
    response.end();
  }
};

http
  .createServer((request, response) => {
    if (request.url === "/next") {
      [...told.keys()].forEach(tell);
      response.end("told\n");
    } else {
      response.writeHead(200, { "Content-Type": "text/event-stream", "Cache-Control": "no-store" });
      told.set(response, 0);
      tell(response);
    }
  })
  .listen(Number(process.argv[2]), "127.0.0.1");
