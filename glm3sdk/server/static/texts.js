// Everything that the page says, in both languages.

const ENGLISH = {
  skip: "To the message field",
  conversations: "Conversations",
  messages: "Messages",
  new: "New conversation",
  untitled: "New conversation",
  rename: "Rename",
  delete: "Delete",
  deleteQuestion: "Delete this conversation?",
  export: "Export as JSON",
  settings: "Settings",
  language: "Language",
  theme: "Theme",
  themeSystem: "System",
  themeLight: "Light",
  themeDark: "Dark",
  apiKey: "API key",
  apiKeyLabel: "Key of this server",
  apiKeyHint: "Kept until this tab is closed, and sent to this server alone.",
  keyMissing: "The server asks for an API key.",
  keyWrong: "The server does not accept this API key.",
  welcome: "What would you like to know?",
  welcomeHint: "Conversations stay in this browser.",
  suggestions: ["Hello", "Who are you?", "What can you do?"],
  message: "Message",
  messageHint: "Write a message",
  keys: "Enter sends · Shift+Enter breaks the line · Esc stops",
  send: "Send",
  stop: "Stop",
  newest: "To the newest message",
  editing: "Sending replaces your last message and what came after it.",
  cancel: "Cancel",
  save: "Save",
  you: "You",
  assistant: "Reply",
  copy: "Copy",
  copyCode: "Copy code",
  retry: "Try again",
  edit: "Edit",
  system: "System prompt",
  systemHint: "How the model is to behave",
  tools: "Tools",
  toolsExample: "Insert an example",
  toolsPlaceholder: '[{"name": "get_weather", "description": "…", "parameters": {…}}]',
  toolsHint: "Function definitions as JSON. You answer the model's calls yourself.",
  toolsNoJson: (why) => `This is not JSON: ${why}`,
  toolsNoName: (position) => `Tool ${position} is no function definition with a name.`,
  sampling: "Sampling",
  greedy: "Greedy: always the likeliest token",
  samplingHint: "Empty fields leave it to the model.",
  unlimited: "what fits",
  random: "random",
  activeSystem: "system prompt",
  activeTools: (count) => (count === 1 ? "1 tool" : `${count} tools`),
  writing: "The model is writing.",
  replied: (text) => `The reply: ${text}`,
  calls: (names) => `The model calls ${names}. Type the result.`,
  call: "Tool call",
  noArguments: "no arguments",
  result: "Result",
  resultHint: "What the tool returns, such as JSON",
  sendResults: "Send the result",
  unanswered: "Not answered.",
  tokens: (count) => (count === 1 ? "1 token" : `${count} tokens`),
  seconds: (count) => `${count} s`,
  stopped: "Stopped",
  cut: "Cut off at the token limit",
  empty: "The reply is empty.",
  unreachable: "The server cannot be reached. Is `glm3 serve` still running?",
  broken: "The connection broke off before the reply was complete.",
  busy: (seconds) =>
    seconds ? `The server is busy. Try again in ${seconds} s.` : "The server is busy.",
  tooLong: "The conversation is longer than the model can read. Start a new one.",
  tooLarge: "The conversation is larger than the server takes. Start a new one.",
  tooSlow: "The reply took longer than the server allows.",
  stopping: "The server is stopping.",
  refused: "The server refused the request.",
  failed: "The server failed.",
  storageFull: "The browser's storage is full: changes are lost when the page is closed. Export or delete conversations.",
  storageMissing: "The browser keeps nothing for this page: conversations are lost when it is closed.",
  disconnected: "not connected",
};

const CHINESE = {
  skip: "跳到输入框",
  conversations: "对话",
  messages: "消息",
  new: "新对话",
  untitled: "新对话",
  rename: "重命名",
  delete: "删除",
  deleteQuestion: "删除这个对话？",
  export: "导出为 JSON",
  settings: "设置",
  language: "语言",
  theme: "主题",
  themeSystem: "跟随系统",
  themeLight: "浅色",
  themeDark: "深色",
  apiKey: "API 密钥",
  apiKeyLabel: "本服务器的密钥",
  apiKeyHint: "只保留到关闭此标签页为止，并且只发送给本服务器。",
  keyMissing: "服务器需要 API 密钥。",
  keyWrong: "服务器不接受这个 API 密钥。",
  welcome: "想聊点什么？",
  welcomeHint: "对话只保存在这个浏览器里。",
  suggestions: ["你好", "请介绍一下华为", "晚上睡不着应该怎么办", "写一个快排算法"],
  message: "消息",
  messageHint: "输入消息",
  keys: "Enter 发送 · Shift+Enter 换行 · Esc 停止",
  send: "发送",
  stop: "停止",
  newest: "回到最新消息",
  editing: "发送后将替换你的上一条消息及其后的内容。",
  cancel: "取消",
  save: "保存",
  you: "你",
  assistant: "回复",
  copy: "复制",
  copyCode: "复制代码",
  retry: "重试",
  edit: "编辑",
  system: "系统提示词",
  systemHint: "希望模型怎样回答",
  tools: "工具",
  toolsExample: "插入示例",
  toolsPlaceholder: '[{"name": "get_weather", "description": "…", "parameters": {…}}]',
  toolsHint: "JSON 格式的函数定义。模型的调用由你来填写结果。",
  toolsNoJson: (why) => `不是有效的 JSON：${why}`,
  toolsNoName: (position) => `第 ${position} 个工具不是带名称的函数定义。`,
  sampling: "采样",
  greedy: "贪心：总取概率最大的词",
  samplingHint: "留空则使用模型的默认值。",
  unlimited: "不限",
  random: "随机",
  activeSystem: "系统提示词",
  activeTools: (count) => `${count} 个工具`,
  writing: "模型正在回复。",
  replied: (text) => `回复：${text}`,
  calls: (names) => `模型调用了 ${names}，请填写结果。`,
  call: "工具调用",
  noArguments: "无参数",
  result: "结果",
  resultHint: "工具返回的内容，例如 JSON",
  sendResults: "发送结果",
  unanswered: "未填写结果。",
  tokens: (count) => `${count} 个 token`,
  seconds: (count) => `${count} 秒`,
  stopped: "已停止",
  cut: "已达到长度上限",
  empty: "回复为空。",
  unreachable: "无法连接服务器。`glm3 serve` 还在运行吗？",
  broken: "回复还没有完成，连接就中断了。",
  busy: (seconds) => (seconds ? `服务器繁忙，请在 ${seconds} 秒后重试。` : "服务器繁忙。"),
  tooLong: "对话超过了模型的上下文长度，请开始新对话。",
  tooLarge: "对话超过了服务器接受的大小，请开始新对话。",
  tooSlow: "回复用时超过了服务器的限制。",
  stopping: "服务器正在停止。",
  refused: "服务器拒绝了这个请求。",
  failed: "服务器出错了。",
  storageFull: "浏览器的存储空间已满，关闭页面后新的内容会丢失。请导出或删除一些对话。",
  storageMissing: "浏览器不允许本页保存数据，关闭页面后对话会丢失。",
  disconnected: "未连接",
};

const TEXTS = { en: ENGLISH, zh: CHINESE };

let language = "en";

/** The language that a browser's preferences ask for. */
export function preferredLanguage(wanted = navigator.languages) {
  const known = wanted.map((each) => each.slice(0, 2).toLowerCase());
  return known.find((each) => each in TEXTS) ?? "en";
}

/** A text in the chosen language; arguments go to those that take some. */
export function text(name, ...values) {
  const found = TEXTS[language][name];
  return typeof found === "function" ? found(...values) : found;
}

/** Choose a language, and put its texts where index.html names them. */
export function speak(chosen) {
  language = chosen in TEXTS ? chosen : "en";
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const each of document.querySelectorAll("[data-text]")) {
    each.textContent = text(each.dataset.text);
  }
  for (const each of document.querySelectorAll("[data-label]")) {
    each.setAttribute("aria-label", text(each.dataset.label));
    if (each.tagName === "BUTTON") each.title = text(each.dataset.label);
  }
  for (const each of document.querySelectorAll("[data-hint]")) {
    each.placeholder = text(each.dataset.hint);
  }
}
