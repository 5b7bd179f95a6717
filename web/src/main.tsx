import { render } from "preact";
import { App } from "./components/App";
import { startTab } from "./tab";
import { start } from "./stream";
import { startTicker } from "./ticker";
import "uplot/dist/uPlot.min.css";
import "./style.css";

const root = document.getElementById("app");
if (root) render(<App />, root);
startTicker();
startTab();
void start();
